"""Decompositions that do not die at the last of 49 layers: retried in float64 on the CPU, then with damping.

Flows in: symmetric matrices. Flows out: eigenvectors, or Cholesky factors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from idealmix.errors import Doubt, IdealmixError

# Up to this size float64 costs little; above it float32's half a digit of lost orthogonality is accepted.
_AFFORDABLE = 256
_JITTERS = (1e-10, 1e-8, 1e-6, 1e-4)


def eigenbasis(matrix: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending and clamped at 0, and eigenvectors (in columns) of a positive semi-definite matrix.

    Args:
        matrix: (d, d).
        name: which matrix, for messages.

    Raises:
        IdealmixError: every attempt failed.
    """
    values, vectors = _stubborn(lambda m: tuple(torch.linalg.eigh(m)), matrix, name, "eigendecomposition")
    return values.clamp_min(0), vectors


def cholesky(matrix: Tensor, name: str) -> Tensor:
    """The lower Cholesky factor of a positive definite matrix.

    Raises:
        IdealmixError: every attempt failed.
    """
    return _stubborn(lambda m: (torch.linalg.cholesky(m),), matrix, name, "Cholesky decomposition")[0]


def _stubborn(
    decompose: Callable[[Tensor], tuple[Tensor, ...]], matrix: Tensor, name: str, what: str
) -> tuple[Tensor, ...]:
    if not bool(torch.isfinite(matrix).all()):
        raise IdealmixError("the factor is not finite", where=name, mend="look for rows with a huge loss")
    even = (matrix + matrix.T) / 2
    first = even.double() if len(even) <= _AFFORDABLE and even.device.type == "cpu" else even
    for attempt, candidate in enumerate(_attempts(first)):
        try:
            parts = decompose(candidate())
        except torch.linalg.LinAlgError:
            continue
        if all(bool(torch.isfinite(part).all()) for part in parts):
            if attempt:
                how = "in float64 on the CPU" if attempt == 1 else f"with jitter {_JITTERS[attempt - 2]:g}"
                warnings.warn(f"{name}: the {what} failed and was repeated {how}", Doubt, stacklevel=3)
            return tuple(part.to(matrix) for part in parts)
    raise IdealmixError(
        f"the {what} fails, also in float64 and with jitter",
        where=name,
        mend="raise influence.damping, or leave this layer out with influence.layers",
    )


def _attempts(matrix: Tensor) -> list[Callable[[], Tensor]]:
    def jittered(share: float) -> Tensor:
        exact = matrix.double().cpu()
        return exact + share * exact.diagonal().mean().clamp_min(1e-300) * torch.eye(
            len(exact), dtype=exact.dtype
        )

    return [
        lambda: matrix,
        lambda: matrix.double().cpu(),
        *(lambda share=share: jittered(share) for share in _JITTERS),  # type: ignore[misc]
    ]
