"""Training and influence see the very same token ids and labels: what reached the model in each is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rounds_helpers import project

from idealmix import configfile
from idealmix.curvature import Collector
from idealmix.data.mixture import draw
from idealmix.influence_stage import measure
from idealmix.rounds.inputs import load_inputs
from idealmix.rounds.watch import Silent
from idealmix.training import train
from idealmix.training.model import load_model
from idealmix.training.planned import PlannedTrainer


def rows_of(input_ids: Any, mask: Any, labels: Any) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids and labels of each row without its padding; the first label is never predicted."""
    return {
        (tuple(ids[real.bool()].tolist()), tuple(targets[real.bool()].tolist()[1:]))
        for ids, real, targets in zip(input_ids, mask, labels, strict=True)
    }


def test_training_and_influence_read_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configfile.load(project(tmp_path), ["training.epochs=1", "influence.sample_fraction=1.0"])
    inputs = load_inputs(config, Silent())
    mixture = draw(inputs.domains, {"count": 30, "swap": 20}, 0, max_repeats=1)
    trained: set[Any] = set()
    measured: set[Any] = set()

    compute_loss, sweep = PlannedTrainer.compute_loss, Collector.sweep

    def training_sees(self: Any, model: Any, batch: Any, *rest: Any, **more: Any) -> Any:
        trained.update(rows_of(batch["input_ids"], batch["attention_mask"], batch["labels"]))
        return compute_loss(self, model, batch, *rest, **more)

    def influence_sees(self: Any, batches: Any, *visitors: Any, **more: Any) -> Any:
        if (
            more.get("label_seed") is not None
        ):  # the pass over the mixture, with labels sampled from the model
            for batch in batches:
                measured.update(rows_of(batch.input_ids, batch.attention_mask, batch.labels))
        return sweep(self, batches, *visitors, **more)

    monkeypatch.setattr(PlannedTrainer, "compute_loss", training_sees)
    monkeypatch.setattr(Collector, "sweep", influence_sees)
    record = train(config.model, mixture, inputs.domains, config.training, seed=0, output=tmp_path / "out")
    measure(
        load_model(tmp_path / "out" / "model"), mixture, inputs.domains, inputs.gradient_halves, config.influence,
        record=record,
    )  # fmt: skip
    assert len(trained) == 50
    assert measured == trained
    assert all(any(label != -100 for label in labels) for _, labels in trained)
