"""Exports that their documented shape is checked against; where a test's consumer is installed, by the consumer."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from export_helpers import HOSTILE, chat, plain_run, run_folder, text_run, tool_run
from rounds_helpers import idealmix

from idealmix.errors import InputError
from idealmix.export import TARGETS, export
from idealmix.export.files import safe_stems


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def table(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def source(run: Path) -> list[dict[str, Any]]:
    files = json.loads((run / "mixture/manifest.json").read_text(encoding="utf-8"))["domains"].values()
    return [row for entry in files for row in rows(run / "mixture" / entry["file"])]


def config(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_keeps_counts_and_says_where_it_comes_from(tmp_path: Path, target: str) -> None:
    run = plain_run(tmp_path / "run")
    exported = export(run, target)
    assert exported.folder == run / "export" / target
    assert not list(tmp_path.rglob("*.part"))
    told = json.loads((exported.folder / "provenance.json").read_text(encoding="utf-8"))
    assert told["seed"] == 7
    assert told["run"] == "run"
    assert told["idealmix"]
    assert told["training"]["max_length"] == 64
    assert {name: entry["rows"] for name, entry in told["domains"].items()} == exported.counts
    assert exported.counts == {
        "a b.c": 4,
        HOSTILE[1]: 4,
        HOSTILE[2]: 5,
        HOSTILE[3]: 6,
        HOSTILE[4]: 7,
        "empty": 0,
    }
    names = {str(path.relative_to(exported.folder)) for path in exported.folder.rglob("*") if path.is_file()}
    assert names == {*told["files"], "provenance.json"}
    assert all(name.isascii() and not set(name) & set(" ,:#[]%") for name in names)
    assert len({name.lower() for name in names}) == len(names)


def test_llama_factory_by_its_documented_shape(tmp_path: Path) -> None:
    folder = export(tool_run(tmp_path / "run"), "llama-factory", tmp_path / "out").folder
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    settings = config(folder)
    assert settings["dataset"].split(",") == list(info) == ["plain", "calls"]
    assert settings["mix_strategy"] == "concat"
    assert settings["cutoff_len"] == 64
    assert all("num_samples" not in entry for entry in info.values())
    assert info["calls"]["columns"] == {"messages": "messages", "tools": "tools"}
    called, told = table(folder / "calls.parquet")
    assert [m["role"] for m in called["messages"]] == ["system", "user", "function_call", "tool", "assistant"]
    assert [c["name"] for c in json.loads(called["messages"][2]["content"])] == ["add", "now"]
    assert called["messages"][3]["content"] == "3\n</tool_response>\n<tool_response>\nnoon"
    assert json.loads(called["tools"])[0]["function"]["name"] == "add"
    assert told["tools"] == ""


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "alternate"),
        ([("user", "a"), ("assistant", "b"), ("user", "c")], "alternate"),
        ([("assistant", "a")], "alternate"),
    ],
)
def test_llama_factory_refuses_what_it_would_drop(tmp_path: Path, messages: Any, reason: str) -> None:
    row = {"id": "odd", "messages": [{"role": role, "content": said} for role, said in messages]}
    run = run_folder(tmp_path / "run", {"d": [chat("ok", "a", "b"), row]})
    with pytest.raises(InputError, match=f"1 row.*odd.*{reason}"):
        export(run, "llama-factory", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.part"))


def test_llama_factory_by_its_own_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By LLaMA-Factory's parser, loader and converters, where it is installed."""
    monkeypatch.setenv(
        "DISABLE_VERSION_CHECK", "1"
    )  # it pins an older transformers; its loader works on ours
    pytest.importorskip("llamafactory")
    from llamafactory.data import loader
    from llamafactory.hparams.data_args import DataArguments
    from transformers import TrainingArguments

    for make, total in ((plain_run, 26), (tool_run, 3)):
        folder = export(make(tmp_path / make.__name__), "llama-factory").folder
        monkeypatch.chdir(folder)
        settings = config(folder)
        named = {
            key: settings[key] for key in ("dataset", "dataset_dir", "mix_strategy", "cutoff_len", "val_size")
        }
        data = DataArguments(**named)
        model = type("ModelArguments", (), {"cache_dir": str(tmp_path / "cache"), "hf_hub_token": None})()
        arguments = TrainingArguments(output_dir=str(tmp_path / "o"), use_cpu=True, report_to="none")
        merged = loader._get_merged_dataset(data.dataset, model, data, arguments, "sft")
        assert len(merged) == total
        assert all(len(row["_prompt"]) % 2 == 1 and len(row["_response"]) == 1 for row in merged)


def test_axolotl_by_its_documented_shape(tmp_path: Path) -> None:
    run = tool_run(tmp_path / "run")
    folder = export(run, "axolotl", tmp_path / "out").folder
    settings = config(folder)
    assert [entry["path"] for entry in settings["datasets"]] == ["plain.parquet", "calls.parquet"]
    assert settings["excess_length_strategy"] == "truncate"
    assert settings["sequence_len"] == 64
    for entry in settings["datasets"]:
        assert entry["roles_to_train"] == ["assistant"]
        assert entry["train_on_eos"] == "turn"
    assert table(folder / "plain.parquet") == source(run)[:1]
    assert [json.loads(row["messages"]) for row in table(folder / "calls.parquet")] == [
        row["messages"] for row in source(run)[1:]
    ]


@pytest.mark.parametrize("make", [plain_run, tool_run, text_run])
def test_axolotl_by_its_own_schema(tmp_path: Path, make: Any) -> None:
    """By Axolotl's schema of a configuration, where it is installed."""
    pytest.importorskip("axolotl")
    from axolotl.utils.schemas.datasets import SFTDataset

    settings = config(export(make(tmp_path / "run"), "axolotl").folder)
    for entry in settings["datasets"]:
        kept = SFTDataset.model_validate(entry).model_dump(exclude_unset=True)
        assert {key: kept[key] for key in entry} == entry
    from axolotl.utils.schemas.config import AxolotlInputConfig

    assert set(settings) <= set(AxolotlInputConfig.model_fields)


def test_ms_swift_by_its_documented_shape(tmp_path: Path) -> None:
    folder = export(tool_run(tmp_path / "run"), "ms-swift", tmp_path / "out").folder
    settings = config(folder)
    assert settings["dataset"] == ["plain.parquet#1", "calls.parquet#2"]
    assert settings["strict"] is True
    assert settings["truncation_strategy"] == "right"
    roles = ["system", "user", "tool_call", "tool_call", "tool_response", "tool_response", "assistant"]
    called = table(folder / "calls.parquet")[0]
    assert [message["role"] for message in called["messages"]] == roles
    assert json.loads(called["messages"][2]["content"]) == {"name": "add", "arguments": {"a": 1, "b": [2, 3]}}
    raw = export(text_run(tmp_path / "raw"), "ms-swift")
    assert raw.command == "swift pt train.yaml"


def test_open_instruct_by_its_documented_shape(tmp_path: Path) -> None:
    run = plain_run(tmp_path / "run")
    folder = export(run, "open-instruct", tmp_path / "out").folder
    settings = config(folder)
    mixer = settings["dataset_mixer_list"]
    assert all(isinstance(entry, str) for entry in mixer)
    assert all("." not in count for count in mixer[1::2])  # a point would make it a fraction
    assert [len(table(folder / file)) for file in mixer[::2]] == [int(count) for count in mixer[1::2]]
    assert settings["push_to_hub"] is False
    with pytest.raises(InputError, match="tools"):
        export(tool_run(tmp_path / "tools"), "open-instruct")


def test_nemo_by_its_documented_shape(tmp_path: Path) -> None:
    """Automodel's reader splits a file by ``str.splitlines``, and reads a missing content as a word."""
    run = plain_run(tmp_path / "run")
    folder = export(run, "nemo", tmp_path / "out").folder
    text = (folder / "training.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == source(run)
    called = rows(export(tool_run(tmp_path / "tools"), "nemo").folder / "training.jsonl")[1]
    assert called["messages"][2]["content"] == ""
    assert called["messages"][2]["tool_calls"]
    blocks = {
        name: yaml.safe_load((folder / f"{name}.yaml").read_text())["dataset"]
        for name in ("automodel", "megatron_bridge")
    }
    assert blocks["automodel"]["path_or_dataset_id"] == "training.jsonl"
    assert blocks["megatron_bridge"]["dataset_kwargs"]["chat"] is True


@pytest.mark.parametrize("make", [plain_run, tool_run, text_run])
def test_csv_by_the_csv_module_and_by_idealmix(tmp_path: Path, make: Any) -> None:
    run = make(tmp_path / "run")
    exported = export(run, "csv")
    with (exported.folder / "mixture.csv").open(encoding="utf-8", newline="") as stream:
        read = list(csv.DictReader(stream))
    counted = Counter(row["domain"] for row in read)
    assert {name: counted[name] for name in exported.counts} == exported.counts

    for row, original in zip(read, source(run), strict=True):
        assert row["id"] == original["id"]
        assert row.get("text", "") == original.get("text", "")
        if "messages" in original:
            assert json.loads(row["messages"]) == original["messages"]
    with (exported.folder / "counts.csv").open(encoding="utf-8", newline="") as stream:
        assert {row["domain"]: int(row["rows"]) for row in csv.DictReader(stream)} == exported.counts


def test_safe_stems_are_unique_without_case() -> None:
    stems = safe_stems(["A", "a", "a-2", "..", "数", "é" * 200, "default"], reserved=["default"])
    assert stems == {
        "A": "A",
        "a": "a-2",
        "a-2": "a-2-2",
        "..": "domain",
        "数": "domain-2",
        "é" * 200: "e" * 48,
        "default": "default-2",
    }


def test_wrong_input_is_one_clear_message(tmp_path: Path) -> None:
    run = plain_run(tmp_path / "run")
    with pytest.raises(InputError, match="did you mean axolotl"):
        export(run, "axolotle")
    with pytest.raises(InputError, match="no such folder"):
        export(tmp_path / "nowhere", "trl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="not a run folder"):
        export(tmp_path / "folder", "trl")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.yaml").write_text("model: m\n")
    with pytest.raises(InputError, match="no final mixture yet"):
        export(tmp_path / "begun", "trl")
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export(run, "csv", full)
    assert (full / "file").read_text() == "mine"
    with pytest.raises(InputError, match="not a folder"):
        export(run, "csv", full / "file")
    both = run_folder(tmp_path / "both", {"d": [chat("c", "a", "b")], "raw": [{"id": "r", "text": "t"}]})
    for target in ("trl", "llama-factory", "axolotl", "ms-swift"):
        with pytest.raises(InputError, match="both"):
            export(both, target)
    assert export(both, "csv").counts == {"d": 1, "raw": 1}


@pytest.mark.parametrize("damage", ["cut", "gone", "changed", "outside"])
def test_a_mixture_that_changed_is_refused(tmp_path: Path, damage: str) -> None:
    run = tool_run(tmp_path / "run")
    file = run / "mixture/plain.jsonl"
    manifest = run / "mixture/manifest.json"
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-20])
        case "gone":
            file.unlink()
        case "changed":
            file.write_text(file.read_text().replace("2020", "2030"))
        case "outside":
            (tmp_path / "secret").write_text("secret\n")
            manifest.write_text(manifest.read_text().replace("plain.jsonl", "../../secret"))
    with pytest.raises(InputError, match=r"plain|secret"):
        export(run, "csv")
    assert not (run / "export" / "csv").exists()


def test_command_line(tmp_path: Path) -> None:
    run = plain_run(tmp_path / "run")
    done = idealmix("export", str(run), "--to", "nemo", "--output", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 26
    again = idealmix("export", str(run), "--to", "nemo", "--output", str(tmp_path / "out"))
    assert again.returncode == 2
    assert "not empty" in again.stderr
    assert "Traceback" not in again.stderr
