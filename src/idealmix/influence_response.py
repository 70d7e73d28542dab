"""What the finite response needs of the training that was done.

Flows in: settings, and what the training left beside its checkpoint: the record of its steps, AdamW's second moments. Flows out:
tau and the optimiser's metric of each layer (docs/method.md), or a refusal that says what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from idealmix import config
from idealmix.curvature import Layer, Metric, adam_metric
from idealmix.errors import IdealmixError, InputError
from idealmix.training.record import MOMENTS

if TYPE_CHECKING:
    from idealmix.training.record import TrainingRecord


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
