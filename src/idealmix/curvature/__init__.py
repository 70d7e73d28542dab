"""Second-order curvature and gradients of any torch module with linear layers.

Rows -> `make_batches` -> `Collector` -> `fit_curvature`, `sum_gradient`, `row_dots`. Imports torch; knows nothing of
transformers, data formats or runs.
"""

from idealmix.curvature.basis import Metric, adam_metric
from idealmix.curvature.batch import Batch, LazyBatches, make_batches
from idealmix.curvature.collect import Collector
from idealmix.curvature.fit import Coupled, Curvature, Identity, fit_curvature
from idealmix.curvature.gradients import RowDots, RowLosses, SumGradient, row_dots, sum_gradient
from idealmix.curvature.layers import Layer, select_layers
from idealmix.curvature.processes import Processes
from idealmix.curvature.shelf import Shelf, Shelves

__all__ = [
    "Batch",
    "Collector",
    "Coupled",
    "Curvature",
    "Identity",
    "Layer",
    "LazyBatches",
    "Metric",
    "Processes",
    "RowDots",
    "RowLosses",
    "Shelf",
    "Shelves",
    "SumGradient",
    "adam_metric",
    "fit_curvature",
    "make_batches",
    "row_dots",
    "select_layers",
    "sum_gradient",
]
