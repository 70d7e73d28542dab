"""Which response of the training a measurement has, and what it needs of it.

Flows in: settings, and what the training left beside its checkpoint: the record of its steps, AdamW's second moments. Flows out:
settings without ``auto``; tau and the optimiser's metric of each layer for the finite response (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import load_file

from idealmix import config
from idealmix.curvature import Layer, Metric, adam_metric
from idealmix.curvature.exact import parameter_names
from idealmix.errors import IdealmixError, InputError
from idealmix.training.record import MOMENTS

if TYPE_CHECKING:
    from idealmix.training.record import TrainingRecord


def settled(
    settings: config.Influence,
    record: TrainingRecord | None,
    folder: Path | None,
    layers: Sequence[Layer],
    dampings: Sequence[float],
) -> config.Influence:
    """``response: auto`` decided: finite has a size that can be believed (docs/results/fidelity.md), but not everything that it asks for
    is there for every checkpoint, and it has no damping to sweep.
    """
    if settings.response != "auto":
        return settings
    finite = settings.curvature in ("ekfac", "kfac") and bool(record and record.step_sizes) and not dampings
    if finite := finite and folder is not None and (folder / MOMENTS).is_file():
        with safe_open(folder / MOMENTS, "pt") as moments:
            finite = {name for each in layers for name in parameter_names(each)} <= set(moments.keys())
    return settings.model_copy(update={"response": "finite" if finite else "converged"})


def training_response(
    settings: config.Influence, record: TrainingRecord | None, folder: Path | None, layers: Sequence[Layer]
) -> tuple[float | None, Mapping[str, Metric] | None]:
    """tau and the optimiser's metric for the finite response; None, None for the others."""
    if settings.response != "converged" and settings.curvature not in ("ekfac", "kfac"):
        raise InputError(
            f"the {settings.response} response needs a curvature in an eigenbasis, and curvature is {settings.curvature!r}",
            where="influence.response",
            mend="use curvature: ekfac, or response: converged",
        )
    if settings.response != "finite":
        return None, None
    if record is None or not record.step_sizes:
        raise InputError(
            "the finite response needs the training's step sizes, and this checkpoint has no record of them",
            where="influence.response",
            mend="use response: converged, or a checkpoint that `idealmix run` trained",
        )
    tau = float(sum(record.clipped_steps))
    path = folder / MOMENTS if folder else None
    if path is None or not path.is_file():
        return tau, None
    moments = load_file(path)
    eps = float((record.optimiser or {}).get("eps") or 1e-8)
    try:
        return tau, {layer.name: adam_metric(layer, moments, eps) for layer in layers}
    except KeyError as error:
        raise IdealmixError(
            f"parameter {error} has no second moment: it was not trained",
            where=str(path),
            mend="select only trained layers with influence.layers, or use response: converged",
        ) from error
