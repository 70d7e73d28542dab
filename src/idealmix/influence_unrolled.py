"""The passes of a measurement over the segments of a training, whose models differ.

Flows in: a model, the segments that the training kept, samples of rows. Flows out: the same products by row as of a single
model: what the segments add is summed.

    1. every segment     its curvature, from the mixture's rows
    2. the end           gbar_q of each reference set, pulled back through the segments: a query for each of them
    3. every segment     the training rows' dots with its queries, and gbar_i, pushed on to the end
    4. the end           the reference rows' dots with what arrived

The training's parameters are put into the model for a segment's passes, and its own are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from idealmix.curvature import Collector, Layer, Metric, RowDots, Shelves, adam_metric, row_dots, sum_gradient
from idealmix.curvature.ekfac import Ekfac
from idealmix.curvature.unrolled import Unrolled
from idealmix.errors import IdealmixError, InputError
from idealmix.influence_rows import NamedRows
from idealmix.influence_sample import Sample
from idealmix.moments import Array
from idealmix.training.record import MOMENTS, PARAMETERS

if TYPE_CHECKING:
    from idealmix.training.record import TrainingRecord

AsRows = Callable[[RowDots, Array, Sample], NamedRows]


@dataclass(frozen=True)
class Segment:
    """A stage of the training.

    Attributes:
        parameters: file of the trained parameters in its middle, by name.
        tau: sum of its clipped step sizes.
        metrics: of the optimiser there, by layer name; None: plain gradient descent.
    """

    parameters: Path
    tau: float
    metrics: Mapping[str, Metric] | None

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """The model has the segment's parameters inside, and its own again afterwards.

        Raises:
            IdealmixError: the file names a parameter that the model has not, or of another shape.
        """
        named, saved = dict(model.named_parameters()), load_file(self.parameters)
        for name, value in saved.items():
            if name not in named or named[name].shape != value.shape:
                raise IdealmixError(
                    f"the model has no parameter {name} of shape {tuple(value.shape)}",
                    where=str(self.parameters),
                )
        own = {name: named[name].detach().clone() for name in saved}
        try:
            _put(named, saved)
            yield
        finally:
            _put(named, own)


def segments_of(record: TrainingRecord | None, folder: Path | None, layers: Sequence[Layer]) -> list[Segment]:
    """What a training kept, in its order.

    Raises:
        InputError: it kept nothing.
        IdealmixError: a file is missing, or a layer was not trained.
    """
    if record is None or folder is None or not record.segments or not record.step_sizes:
        raise InputError(
            "the unrolled response needs stages of the training, and this checkpoint has none",
            where="influence.response",
            mend="train with `idealmix run` and response: unrolled set from the start, or use response: finite",
        )
    eps = float((record.optimiser or {}).get("eps") or 1e-8)
    parts = np.array_split(record.clipped_steps, len(record.segments))
    found = []
    for number, part in enumerate(parts, 1):
        place = folder / "segments" / str(number)
        if not (place / PARAMETERS).is_file():
            raise IdealmixError(
                "a stage of the training is missing", where=str(place), mend="train this round again"
            )
        moments = load_file(place / MOMENTS) if (place / MOMENTS).is_file() else None
        metrics = (
            None if moments is None else {layer.name: adam_metric(layer, moments, eps) for layer in layers}
        )
        found.append(Segment(place / PARAMETERS, float(part.sum()), metrics))
    return found


def unrolled_products(
    collector: Collector,
    segments: Sequence[Segment],
    fit: Callable[[Segment], Ekfac],
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    shelves: Shelves,
    as_rows: AsRows,
) -> tuple[list[NamedRows | None], list[NamedRows], dict[str, Array]]:
    """Rows of the training sets (None: no rows) and of the references, and the products' parts by layer.

    Args:
        fit: measures a segment's curvature; the model is the segment's when it is called.
        training, held_out: samples; the same rows in every segment.
        as_rows: a set's rows from their dots and products.

    Raises:
        IdealmixError: something is not finite, or a segment's file does not fit the model.
    """
    fitted = []
    for segment in segments:
        with segment.within(collector.model):
            fitted.append(fit(segment))
    unrolled, names = Unrolled(fitted), [layer.name for layer in collector.layers]

    gradients = [sum_gradient(collector, sample.batches).mean() for sample in held_out]
    queries = [shelves.shelf() for _ in segments]
    for name in names:
        for shelf, answer in zip(queries, unrolled.pull(name, torch.stack([g.pop(name) for g in gradients]))):
            shelf.put(name, answer)

    products: list[Array | None] = [None] * len(training)
    dots: list[RowDots | None] = [None] * len(training)
    by_layer = {name: np.zeros((len(held_out), len(training))) for name in names}
    present = [number for number, sample in enumerate(training) if sample.rows]
    arrived = shelves.shelf()
    for segment, curvature, asked in zip(segments, fitted, queries):
        moved: dict[str, list[Tensor]] = {name: [] for name in names}
        with segment.within(collector.model):
            for number in present:
                each = row_dots(collector, training[number].batches, asked, total=True)
                if each.gradient is None:
                    raise RuntimeError("row_dots gives the gradient that total=True asks for")
                before, known = products[number], dots[number]
                products[number] = each.dots.numpy()
                if before is not None and known is not None:  # a batch that was cut changes the order of rows
                    place = {row: k for k, row in enumerate(known.rows.row_ids)}
                    products[number] = before[[place[row] for row in each.rows.row_ids]] + each.dots.numpy()
                for name, part in by_layer.items():
                    part[:, number] += each.by_layer[name].numpy() / each.gradient.supervised
                for name, gradient in each.gradient.mean().items():
                    moved[name].append(gradient)
                dots[number] = replace(each, gradient=None)
        asked.clear()
        for name in names:
            answer = curvature.respond(name, torch.stack(moved.pop(name)))
            arrived.put(name, answer + curvature.carry(name, arrived[name]) if name in arrived else answer)

    rows: list[NamedRows | None] = [None] * len(training)
    for number in present:
        found, summed = dots[number], products[number]
        if found is not None and summed is not None:
            rows[number] = as_rows(found, summed, training[number])
    on_references = []
    for sample in held_out:
        found = row_dots(collector, sample.batches, arrived)
        summed = np.zeros((sample.rows, len(training)))
        summed[:, present] = found.dots.numpy()
        on_references.append(as_rows(found, summed, sample))
    return rows, on_references, by_layer


def _put(named: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            named[name].copy_(value)
