"""Sums that stay exact enough: float32 or better whatever the model computes in.

A bf16 sum stops growing after a few hundred terms, and a covariance rounded to bf16 has negative eigenvalues.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to add up in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product(x: Tensor, y: Tensor) -> Tensor:
    """sum over all leading positions of x y': (.., p) and (.., q) -> (p, q), in `wide` precision."""
    kind = wide(x.dtype)
    return x.reshape(-1, x.shape[-1]).to(kind).T @ y.reshape(-1, y.shape[-1]).to(kind)
