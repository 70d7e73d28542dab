"""Values that pass one by one and cannot work: endless numbers, names that mean two places, keys without effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from idealmix import configfile
from idealmix.config import Config
from idealmix.errors import InputError

GOOD = {"model": "some/model", "domains": {"math": "a.jsonl"}, "references": {"math": "r.jsonl"}}
COMMAND = {"backend": "command", "command": "t {model} {train_file} {output_dir}"}


def load(folder: Path, **more: object) -> Config:
    return configfile.from_mapping({**GOOD, **more}, folder=folder)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("training.max_grad_norm", lambda x: {"training": {"max_grad_norm": x}}),
        ("training.weight_decay", lambda x: {"training": {"weight_decay": x}}),
        ("training.lora.lora_alpha", lambda x: {"training": {"lora": {"lora_alpha": x}}}),
        ("training.adam_beta1", lambda x: {"training": {"adam_beta1": x}}),
        ("training.optim_args.0.eps", lambda x: {"training": {"optim_args": [{"eps": x}]}}),
        ("methods.random.k", lambda x: {"methods": {"random": {"k": x}}}),
    ],
)
def test_endless_numbers_are_refused(tmp_path: Path, key: str, block, value: float) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, **block(value))
    assert f"{key}: " in str(error.value)
    assert "finite number" in str(error.value)


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("model", {"model": "base"}),
        ("search.model", {"search": {"model": "base"}}),
        ("domains.math.path", {"domains": {"math": "base"}}),
        ("references.math.path", {"references": {"math": {"path": "base"}}}),
        ("tests.math.path", {"tests": {"math": "base"}}),
    ],
)
def test_a_name_that_is_only_where_the_command_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, more: dict
) -> None:
    started, beside = tmp_path / "started", tmp_path / "beside"
    (started / "base").mkdir(parents=True)
    beside.mkdir()
    assert load(beside, model="base").model == "base"  # nowhere: a hub name
    monkeypatch.chdir(started)
    with pytest.raises(InputError) as error:
        load(beside, **more)
    text = str(error.value)
    assert text.startswith(f"{key}: 'base' is not beside the configuration")
    assert str(beside / "base") in text
    assert str(started / "base") in text
    assert "./base" in text
    (beside / "base").mkdir()
    assert load(beside, model="base").model == str(beside / "base")


def test_a_command_has_no_rate_of_the_searchs_own(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"search\.learning_rate: an outside command .* backend: trl"):
        load(tmp_path, training=COMMAND, search={"learning_rate": 1e-4})
    assert load(tmp_path, training=COMMAND, search={"fraction": 0.5}).search is not None
    assert load(tmp_path, search={"learning_rate": 1e-4}).search is not None


def test_the_papers_method_searches_at_full_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="search: a search at another size needs a held budget"):
        load(tmp_path, method="ideal-paper", search={})
