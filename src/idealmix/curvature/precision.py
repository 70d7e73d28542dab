"""Sums that stay exact enough: float32 or better whatever the model computes in.

A bf16 sum stops growing after a few hundred terms, and a covariance rounded to bf16 has negative eigenvalues.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to add up in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Columns of one panel of `gram`: narrower ones would slow the product down by more than they save.
_PANEL = 128


def product(x: Tensor, y: Tensor) -> Tensor:
    """sum over all leading positions of x y': (.., p) and (.., q) -> (p, q), in `wide` precision."""
    kind = wide(x.dtype)
    return x.reshape(-1, x.shape[-1]).to(kind).T @ y.reshape(-1, y.shape[-1]).to(kind)


def gram(x: Tensor, weights: Tensor) -> Tensor:
    """sum over rows and positions of w x x': (B, M, p) and (B,) -> (p, p), in `wide` precision.

    By panels on and above the diagonal; what lies below is their mirror. Saves up to 7/16 of the multiplications.
    """
    kind, size = wide(x.dtype), x.shape[-1]
    x = x.to(kind)
    left = (x * weights.to(kind)[:, None, None]).reshape(-1, size)
    x = x.reshape(-1, size)
    panel = max(_PANEL, size // 8)
    if size <= panel:
        return left.T @ x
    whole = x.new_empty(size, size)
    for begin in range(0, size, panel):
        rows = slice(begin, begin + panel)
        part = left[:, rows].T @ x[:, begin:]
        whole[rows, begin:] = part
        whole[begin:, rows] = part.T
    return whole
