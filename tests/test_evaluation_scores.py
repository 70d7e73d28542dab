"""Exact match, greedy generation, users' functions."""

from __future__ import annotations

import math

import evaluation_helpers as helpers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from idealmix.config import Score
from idealmix.data.conversation import Conversation
from idealmix.data.tokenise import Encoder
from idealmix.errors import InputError
from idealmix.evaluation.exact_match import answer, compile_pattern, is_right, normalise, reference_answers
from idealmix.evaluation.generation import answer_text, end_tokens, generate
from idealmix.evaluation.scores import ScoreResult, check_rows, check_score, from_rows, score

GSM8K = compile_pattern("#### (.+)")


# --- exact match ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generated", "right"),
    [
        ("6 * 30 = 180\n#### 1,180", True),
        ("#### 7\nno:\n####   1180  ", True),  # the last one counts
        ("#### 1180\nno:\n#### 7", False),
        ("the answer is 1180", False),  # no match is wrong
        ("#### 1180.", False),  # a full stop counts
        ("#### $1180", False),
        ("#### \n", False),
        ("", False),
    ],
)
def test_gsm8k_answers(generated, right):
    wanted = reference_answers(GSM8K, {"a": "1,000 + 180\n#### 1,180"}, "scores.x")["a"]
    assert wanted == "1180"
    assert is_right(GSM8K, generated, wanted) is right


def test_the_whole_text_as_answer_is_not_the_empty_match_after_it():
    everything = compile_pattern("(?s)(.*)")  # finds the text, then an empty string at its end
    assert answer(everything, " two\n words ") == "two words"
    assert not is_right(everything, "abc", "abd")
    assert answer(everything, "") is None


def test_the_match_itself_where_there_is_no_group():
    assert answer(compile_pattern(r"\d+"), "from 3 to 12") == "12"
    assert answer(compile_pattern(r"a(b)?"), "ab a") == "b"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("1,234,567", "1234567"),
        ("1,2,3", "1,2,3"),
        ("1,23", "1,23"),
        ("12,345.5", "12345.5"),
        ("1,2345", "1,2345"),
        ("a\t b\n", "a b"),
    ],
)
def test_normalising(text, plain):
    assert normalise(text) == plain


@given(st.text())
def test_normalising_twice_is_once(text):
    assert normalise(normalise(text)) == normalise(text)


def test_a_reference_without_an_answer_is_named():
    with pytest.raises(InputError, match=r"scores.gsm8k: '#### \(\.\+\)' finds no answer in 2 of 3 .*: b, c"):
        reference_answers(GSM8K, {"a": "#### 1", "b": "1", "c": "2"}, "scores.gsm8k")


def test_a_pattern_that_finds_no_answer_is_told_before_anything_is_generated():
    pool = helpers.TinyPool("test", [], prompts(3))
    setting = Score(test="t", exact_match="#### (.+)")
    for ask in (
        lambda: check_rows("gsm8k", setting, pool),
        lambda: score("gsm8k", None, None, pool, setting),  # no model is asked
    ):
        with pytest.raises(InputError, match=r"scores.gsm8k: '#### .*' finds no answer in 3 of 3"):
            ask()


def test_a_bad_pattern_is_the_users_input():
    with pytest.raises(InputError, match="not a regular expression"):
        check_score("x", Score(test="t", exact_match="(("))


# --- generation ----------------------------------------------------------------------------------------------


def prompts(count: int = 8) -> list[Conversation]:
    """Of 4 to 23 tokens."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(7, helpers.VOCABULARY, int(rng.integers(1, 20))) for _ in range(count)]
    return [helpers.chat(str(n), " ".join(f"w{w}" for w in words), "w47") for n, words in enumerate(texts)]


def one_at_a_time(model, tokenizer, ids: list[int], new: int) -> str:
    """Greedy decoding without cache, pads or `generate`."""
    out: list[int] = []
    with torch.no_grad():
        while len(out) < new and len(ids) + len(out) < 64:
            out.append(int(model(torch.tensor([ids + out])).logits[0, -1].argmax()))
            if out[-1] in (2, 5):  # </s>, <end>
                out.pop()
                break
    return tokenizer.decode(out, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 90, 10_000])
def test_batches_with_left_pads_equal_one_at_a_time(kind, batch_tokens):
    model, tokenizer = helpers.tiny_model(kind, torch.float64, seed=3), helpers.tiny_tokenizer()
    given_prompts = prompts()
    encoder = Encoder(tokenizer, 99)
    wanted = [one_at_a_time(model, tokenizer, encoder.prompt(row), 12) for row in given_prompts]
    got = generate(model, tokenizer, given_prompts, max_new_tokens=12, batch_tokens=batch_tokens)
    assert got == wanted
    assert len(set(wanted)) > 4  # the model does read its prompt


def test_answers_end_at_the_end_of_a_turn():
    model, tokenizer = helpers.tiny_model(seed=3), helpers.tiny_tokenizer()
    assert end_tokens(model, tokenizer, prompts()[0]) == {2, 5}
    words = generate(model, tokenizer, prompts(), max_new_tokens=12)[0].split()
    at = next(n for n in range(2, len(words)) if words[n] not in words[:n])
    token = tokenizer.convert_tokens_to_ids(words[at])
    with torch.no_grad():  # from now on the model ends the turn where it said that word
        model.lm_head.weight[[token, 5]] = model.lm_head.weight[[5, token]]
    assert generate(model, tokenizer, prompts(), max_new_tokens=12)[0].split() == words[:at]


def test_the_checkpoints_own_sampling_settings_are_left_aside_and_kept():
    model, tokenizer = helpers.tiny_model(seed=3), helpers.tiny_tokenizer()
    plain = generate(model, tokenizer, prompts(), max_new_tokens=12)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.min_new_tokens = True, 5.0, 9.0, 11
    assert generate(model, tokenizer, prompts(), max_new_tokens=12) == plain
    assert model.generation_config is own
    assert own.repetition_penalty == 9.0


def test_a_prompt_that_fills_the_context_is_refused_and_a_long_one_gets_what_is_left():
    model, tokenizer = helpers.tiny_model("gpt2", seed=3), helpers.tiny_tokenizer()
    with pytest.raises(InputError, match="context of 64 tokens: long"):
        generate(model, tokenizer, [helpers.chat("long", "w7 " * 61, "w8")])
    assert len(generate(model, tokenizer, [helpers.chat("long", "w7 " * 57, "w8")])[0].split()) <= 4


def test_the_prompt_is_what_stands_before_the_last_assistant_turn():
    model, tokenizer = helpers.tiny_model(seed=3), helpers.tiny_tokenizer()
    conversation = helpers.chat("a", "w7", "w8")
    conversation.messages.extend([{"role": "user", "content": "w9"}, {"role": "assistant", "content": "w10"}])
    ids = tokenizer("<user> w7 <end> <assistant> w8 <end> <user> w9 <end> <assistant>").input_ids
    assert generate(model, tokenizer, [conversation], 8) == [one_at_a_time(model, tokenizer, ids, 8)]
    assert answer_text(conversation) == "w10"


def test_a_tokenizer_without_a_template_gets_the_plain_one():
    model, tokenizer = helpers.tiny_model(seed=3), helpers.tiny_tokenizer()
    tokenizer.chat_template = None
    assert end_tokens(model, tokenizer, prompts()[0]) == {2}
    assert len(generate(model, tokenizer, prompts(2), 5)) == 2


# --- scores --------------------------------------------------------------------------------------------------


def chat_pool(model, tokenizer, right: int, wrong: int) -> helpers.TinyPool:
    """A test set of which the model gets `right` rows right, by construction."""
    rows = []
    for n in range(right + wrong):
        row = helpers.chat(f"row-{n}", f"w{8 + n} w{30 - n}", "w9")
        said = generate(model, tokenizer, [row], 6)[0]
        rows.append(helpers.chat(row.id, row.messages[0]["content"], said if n < right else "w47 w47 w7"))
    return helpers.TinyPool("test", [], rows)


def test_exact_match_of_a_model():
    model, tokenizer = helpers.tiny_model(seed=3), helpers.tiny_tokenizer()
    pool = chat_pool(model, tokenizer, right=3, wrong=5)
    setting = Score(test="test", exact_match="(.+)", max_new_tokens=6)
    seen: list[tuple[int, int]] = []
    result = score("match", model, tokenizer, pool, setting, progress=lambda *x: seen.append(x))
    assert (result.mean, result.n) == (3 / 8, 8)
    assert result.per_row == {f"row-{n}": float(n < 3) for n in range(8)}
    assert result.se == pytest.approx(math.sqrt(3 / 8 * 5 / 8 / 7))
    assert seen[-1] == (8, 8)
    assert score("match", model, tokenizer, pool, setting.model_copy(update={"rows": 4})).mean == 3 / 4
    assert ScoreResult.from_json(result.to_json()) == result


def test_all_right_is_not_certain():
    result = from_rows("x", {str(n): 1.0 for n in range(150)})
    assert result.se == pytest.approx(math.sqrt(151 / 152 / 152 / 150))
    assert from_rows("x", {"a": 0.5}).se is None


MODULE = """
def one(model, tokenizer, rows): return 0.25
def each(model, tokenizer, rows): return [float(row["response"] == "w8") for row in rows]
def by_id(model, tokenizer, rows): return {row["id"]: 2 for row in reversed(rows)}
def seen(model, tokenizer, rows):
    assert rows[0] == {"id": "a", "messages": rows[0]["messages"], "tools": None,
                       "prompt": [{"role": "user", "content": "w7"}], "response": "w8"}
    assert (model, tokenizer) == ("model", "tokenizer")
    import scores_helper
    return scores_helper.VALUE
def fails(model, tokenizer, rows): raise KeyError("gone")
def text(model, tokenizer, rows): return "good"
def short(model, tokenizer, rows): return [1.0]
def nan(model, tokenizer, rows): return float("nan")
def strays(model, tokenizer, rows): return {"accuracy": 1.0}
"""


@pytest.fixture
def call(tmp_path):
    """Scores two rows with a function of a module that lies in a folder of its own."""
    name = f"scores_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "scores_helper.py").write_text("VALUE = 0.75")
    (tmp_path / f"{name}_broken.py").write_text("import not_installed_anywhere")
    pool = helpers.TinyPool("test", [], [helpers.chat("a", "w7", "w8"), helpers.chat("b", "w9", "w47")])

    def run(function: str, suffix: str = ""):
        target = f"{name}{suffix}:{function}" if ":" not in function else function
        return score("mine", "model", "tokenizer", pool, Score(test="test", callable=target), tmp_path)

    return run


def test_what_a_users_function_may_return(call):
    assert call("one") == ScoreResult("mine", 0.25, None, 2, None)
    each = call("each")
    assert (each.mean, each.per_row) == (0.5, {"a": 1.0, "b": 0.0})
    assert each.se == pytest.approx(0.5)
    assert call("by_id").per_row == {"a": 2.0, "b": 2.0}
    assert call("seen").mean == 0.75


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", r"raised KeyError: 'gone' \(.*scores_.*py, line 11\)"),
        ("text", "returned 'good'"),
        ("short", "1 numbers for 2 rows"),
        ("nan", "returned nan"),
        ("strays", "keys are not the 2 row ids"),
        ("absent", "has no function 'absent'(.|\n)*it has one, each, by_id"),
        ("no_such_module_here:f", "there is no module 'no_such_module_here' in /"),
        ("json.no_such:f", "there is no module 'json.no_such'"),
        ("just a name:", "does not name a function"),
    ],
)
def test_faults_of_a_users_function(call, function, message):
    with pytest.raises(InputError, match=f"scores.mine.callable: .*{message}"):
        call(function)


def test_a_module_that_cannot_be_imported_says_why(call):
    with pytest.raises(
        InputError, match="failed: ModuleNotFoundError: No module named 'not_installed_anywhere'"
    ):
        call("f", suffix="_broken")


def test_a_raw_text_cannot_be_matched():
    pool = helpers.TinyPool("test", [], [Conversation("raw", [], None, "some text")])
    with pytest.raises(InputError, match="row raw: no assistant turn"):
        score("x", None, None, pool, Score(test="test", exact_match="(.+)"))


def test_a_long_prompt_cuts_no_other_answer() -> None:
    from idealmix.evaluation.generation import _batches

    lengths = [2000, 100, 90]  # 48 tokens of room, 1948, 1958
    for batch_tokens in (300, 2300, 100_000):
        batches = list(_batches(lengths, 256, batch_tokens, 2048))
        assert [0] in batches
        assert sorted(i for batch in batches for i in batch) == [0, 1, 2]
    assert list(_batches(lengths, 256, 100_000, None)) == [[0, 1, 2]]
    assert list(_batches([100, 90], 256, 100_000, 2048)) == [[0, 1]]
