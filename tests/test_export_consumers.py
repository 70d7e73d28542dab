"""Exports read by the consumer itself: TRL's command line and trainer, and `datasets`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from export_helpers import plain_run, run_folder, text_run, tool_run
from rounds_helpers import count, save_model, swap

from idealmix.export import export


def original(run: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for entry in json.loads((run / "mixture/manifest.json").read_text(encoding="utf-8"))["domains"].values():
        for line in (run / "mixture" / entry["file"]).read_bytes().split(b"\n"):
            if line:
                row = json.loads(line)
                found[row["id"]] = row
    return found


@pytest.mark.parametrize("make", [plain_run, tool_run, text_run])
def test_hf_dataset_by_datasets(tmp_path: Path, make: Any) -> None:
    """By `datasets.load_dataset` of the folder: counts, names and rows, whole and by domain."""
    import datasets

    run = make(tmp_path / "run")
    exported = export(run, "hf-dataset")
    whole = datasets.load_dataset(str(exported.folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert Counter(whole["domain"]) == Counter({k: n for k, n in exported.counts.items() if n})
    expected = original(run)
    assert len(whole) == len(expected)
    for row in whole:
        source = expected[row["id"]]
        assert row.get("messages") == source.get("messages")
        assert row.get("text") == source.get("text")
        assert json.loads(row.get("tools") or "null") == source.get("tools")
    names = datasets.get_dataset_config_names(str(exported.folder))
    assert len(names) == 1 + sum(n > 0 for n in exported.counts.values())
    one = datasets.load_dataset(
        str(exported.folder), names[-1], split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(set(one["domain"])) == 1


def parsed(folder: Path) -> tuple[Any, ...]:
    from trl.scripts.sft import make_parser

    return make_parser().parse_args_and_config(["--config", str(folder / "train.yaml")])


@pytest.mark.parametrize("make", [plain_run, tool_run, text_run])
def test_trl_by_its_own_parser_and_loader(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parser of `trl sft`, which refuses unknown keys, and TRL's `get_dataset`."""
    from trl import get_dataset

    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    run = make(
        tmp_path / "run", training={"max_length": 64, "learning_rate": 1e-5, "dtype": "float32", "lora": lora}
    )
    folder = export(run, "trl").folder
    monkeypatch.chdir(folder)
    _, training, model, mixture = parsed(folder)
    assert training.max_length == 64
    assert training.learning_rate == 1e-5
    assert training.assistant_only_loss == (make is not text_run)
    assert model.use_peft
    assert model.lora_r == 4
    assert all(entry.fraction is None for entry in mixture.datasets)
    rows = get_dataset(mixture)["train"]
    expected = list(original(run).values())
    assert len(rows) == len(expected)
    column = "text" if make is text_run else "messages"
    key = json.dumps
    assert Counter(key(row[column], sort_keys=True) for row in rows) == Counter(
        key(row[column], sort_keys=True) for row in expected
    )


def test_trl_trains_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `trl sft`'s own main: one epoch of two steps; it sees every row, repetitions included."""
    from trl.scripts.sft import main

    domains = {}
    for name, pair in (("count, by one", count(1, 2, 3)), ("swap", swap("cat", "dog", "red"))):
        messages = [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        domains[name] = [{"id": f"{name}#{k}", "messages": messages} for k in range(1, 4)]
    training = {
        "max_length": 32, "learning_rate": 1e-3, "dtype": "float32", "per_device_train_batch_size": 3,
        "logging_steps": 1,
    }  # fmt: skip
    run = run_folder(tmp_path / "run", domains, model=str(save_model(tmp_path / "model")), training=training)
    folder = export(run, "trl").folder
    monkeypatch.chdir(folder)
    script, arguments, model, mixture = parsed(folder)
    arguments.use_cpu = True
    main(script, arguments, model, mixture)
    state = json.loads(next((folder / "model").rglob("trainer_state.json")).read_text(encoding="utf-8"))
    assert state["global_step"] == 2
    assert (folder / "model" / "model.safetensors").is_file()
