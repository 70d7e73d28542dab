"""Pools keep every row or say why not; sets that overlap are refused."""

from __future__ import annotations

import gc
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_helpers import make_tokenizer, pool_from, template

from idealmix import config
from idealmix.data.pools import check_leaks, load_pool, split_reference
from idealmix.data.tokenise import Encoder
from idealmix.errors import InputError


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(prompts: list[str], start: int = 0) -> list[dict]:
    return [
        {"id": f"row/{start + n}", "prompt": prompt, "response": f"It is {n}."}
        for n, prompt in enumerate(prompts)
    ]


def made(tmp_path: Path, name: str, prompts: list[str], **options):
    return pool_from(write(tmp_path / f"{name}.jsonl", rows(prompts)), name, **options)


def test_rows_reach_the_pool_as_the_encoder_made_them(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(["What is 2?", "What is the weather in Paris?"]))
    encoder = Encoder(make_tokenizer(template("qwen2_5"), eos="<|im_end|>"), 500)
    pool = load_pool("math", config.Source(path=str(path)), encoder, seed=0)
    for number in range(2):
        encoded, row = encoder.encode(pool.conversation(number)), pool.row(number)
        assert (row.input_ids, row.labels) == (encoded.input_ids, encoded.labels)
        assert pool.tokens[number] == len(row.input_ids)
        assert pool.supervised[number] == sum(label != -100 for label in row.labels[1:])
        assert pool.index[row.id] == number
    assert pool.ids == ["row/0", "row/1"]
    assert len(pool) == 2


def test_many_rows_cross_batches(tmp_path):
    pool = made(tmp_path, "math", [f"What is {n}?" for n in range(1100)])
    assert len(pool) == 1100
    assert pool.conversation(1050).messages[0]["content"] == "What is 1050?"
    assert all(pool.tokens[n] == len(pool.row(n).input_ids) for n in (0, 999, 1000, 1099))


def test_everything_dropped_or_cut_is_counted(tmp_path):
    prompts = ["Hi", "What is it? " * 40, "Hi", "hi "]
    pool = made(tmp_path, "math", prompts, max_length=40)
    report = pool.report
    assert pool.ids == ["row/0", "row/2", "row/3"]
    assert (report.read, report.kept, report.truncated) == (4, 3, 0)
    assert report.dropped == {"no supervised token before the cut": 1}
    assert report.repeated_prompts == 2
    assert "1 of 4 rows were dropped: no supervised token before the cut" in report.warnings
    assert "2 rows repeat the prompt of another row in it" in report.warnings
    assert json.loads(json.dumps(report.to_dict()))["kept"] == 3
    shorter = made(tmp_path, "math", ["Hi", "Hello"], max_length=int(pool.tokens[0]) - 2)
    assert shorter.report.truncated == 2
    assert (shorter.tokens == pool.tokens[0] - 2).all()


def test_raw_text_and_unused_columns_warn(tmp_path):
    pool = pool_from(write(tmp_path / "a.jsonl", [{"text": "It rains.", "source": "x"}]))
    assert any("raw text" in warning for warning in pool.report.warnings)
    assert "columns not used: source" in pool.report.warnings


def test_a_domain_without_a_supervised_token_is_refused(tmp_path):
    with pytest.raises(InputError, match="not one supervised token is left of its 2 rows, cut at 8 tokens"):
        made(tmp_path, "math", ["What is it? " * 40, "What is it then? " * 40], max_length=8)


def test_a_row_that_the_template_refuses_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**rows(["Hi"])[0], "system": "S"}])
    with pytest.raises(InputError, match=r"math \(.*a.jsonl\), row 'row/0': .*System role not supported"):
        load_pool(
            "math", config.Source(path=str(path)), Encoder(make_tokenizer(template("gemma")), 99), seed=0
        )


def test_a_sample_depends_on_seed_and_ids_alone(tmp_path):
    prompts = [f"What is {n}?" for n in range(40)]
    first, again, other = (made(tmp_path, "math", prompts, rows=10, seed=seed) for seed in (0, 0, 1))
    assert first.ids == again.ids != other.ids
    assert len(first) == 10
    assert first.report.not_sampled == 30
    backwards = pool_from(write(tmp_path / "b.jsonl", rows(prompts)[::-1]), "math", rows=10)
    assert sorted(backwards.ids) == sorted(first.ids)


def test_digest_changes_with_any_content(tmp_path):
    digests = {
        made(tmp_path, "math", prompts).digest for prompts in (["a", "b"], ["b", "a"], ["a", "c"], ["a"])
    }
    assert len(digests) == 4
    assert made(tmp_path, "x", ["a", "b"]).digest == made(tmp_path, "y", ["a", "b"]).digest
    assert made(tmp_path, "x", ["a b c"], max_length=20).digest != made(tmp_path, "x", ["a b c"]).digest


def test_subsets_and_workers(tmp_path):
    pool = made(tmp_path, "math", [f"What is {n}?" for n in range(9)])
    part = pool.subset([4, 2], "part")
    row = pool.row(4)
    assert (part.name, part.ids, part.row(0)) == ("part", ["row/4", "row/2"], row)
    assert part.tokens.tolist() == pool.tokens[[4, 2]].tolist()
    assert part.conversation(1) == pool.conversation(2)
    assert part.prompt_keys.tolist() == [pool.prompt_keys[4], pool.prompt_keys[2]]
    assert len(pool.subset([])) == 0
    del pool
    gc.collect()
    assert part.row(0) == row  # the mapped file lives as long as a pool on it
    copied = pickle.loads(pickle.dumps(part))  # noqa: S301  (as a data loader's spawned worker gets it)
    assert copied.row(0) == row


def test_reference_halves(tmp_path):
    pool = made(tmp_path, "math", [f"What is {n}?" for n in range(11)])
    gradient, deciding = split_reference(pool, 0)
    assert sorted(gradient.ids + deciding.ids) == sorted(pool.ids)
    assert (len(gradient), len(deciding)) == (6, 5)
    assert split_reference(pool, 0)[0].ids == gradient.ids
    assert split_reference(pool, 1)[0].ids != gradient.ids
    assert np.all(np.diff([pool.index[row_id] for row_id in gradient.ids]) > 0)


def test_overlaps_are_refused_all_at_once(tmp_path):
    domain = made(tmp_path, "domain", ["What is 2?", "How?", "Why?"])
    clean = made(tmp_path, "clean", ["Where?"])
    reference = made(tmp_path, "reference", ["When?", "what  is 2?\n", "WHY?"])
    check_leaks({"a": domain}, {"b": clean}, {"c": made(tmp_path, "test", ["Who?"])})
    with pytest.raises(InputError) as error:
        check_leaks(
            {"a": domain, "e": clean}, {"b": reference}, {"c": made(tmp_path, "test", ["When?", "Where?"])}
        )
    text = str(error.value)
    assert (
        "2 of 3 rows of references.b stand in domains.a (2 rows there): row/1, row/2 = row/0, row/2" in text
    )
    assert "1 of 2 rows of tests.c stand in domains.e" in text
    assert "1 of 3 rows of references.b stand in tests.c" in text
    assert "To mend" in text


def test_only_the_last_answer_is_outside_of_the_prompt(tmp_path):
    def chat(*contents: str) -> dict:
        return {
            "messages": [
                {"role": ("user", "assistant")[n % 2], "content": content}
                for n, content in enumerate(contents)
            ]
        }

    train = pool_from(write(tmp_path / "a.jsonl", [chat("a", "b", "c", "d")]))
    same = pool_from(write(tmp_path / "b.jsonl", [chat("A", "b", "c ", "another")]))
    other = pool_from(write(tmp_path / "c.jsonl", [chat("a", "x", "c", "d")]))
    check_leaks({"a": train}, {"b": other}, {})
    with pytest.raises(InputError, match="1 of 1 rows"):
        check_leaks({"a": train}, {"b": same}, {})
