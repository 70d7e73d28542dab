"""Labels drawn from the model's own distribution: what makes the Fisher equal the Gauss-Newton matrix.

Flows in: logits at supervised positions and each position's key (seed, row id, place in the row). Flows out: one
class each. The randomness is a function of the key alone, so batch size, order and padding change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seed: int, row_ids: Sequence[str], rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Counter-based uniforms in (0, 1), float64.

    Args:
        seed: any integer.
        row_ids: the batch's row ids.
        rows: (N,) index into `row_ids`.
        positions: (N,) place in the row.

    A 64-bit key for each row (BLAKE2b of seed and id), then SplitMix64 (Steele, Lea and Flood 2014) at the counter
    `position`.
    """
    keys = np.array([_row_key(seed, row_id) for row_id in row_ids], dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**64
        x = keys[rows] + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    # 52 bits: one more would round the largest to 1
    return ((x >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """Classes by the inverse distribution function of softmax(logits) at temperature 1.

    Args:
        logits: (N, V), any float type; float32 or better inside, the running sum in float64.
        uniform: (N,) float64 in (0, 1).

    Returns:
        (N,) class indices.
    """
    picked = []
    chunk = max(1, 2**24 // logits.shape[-1])  # the running sums of all positions at once would be large
    for scores, u in zip(logits.split(chunk), uniform.split(chunk)):
        wide = scores.double() if scores.dtype == torch.float64 else scores.float()
        mass = torch.softmax(wide, -1).cumsum(-1, dtype=torch.float64)
        threshold = u.to(mass.device)[:, None] * mass[:, -1:]
        picked.append(torch.searchsorted(mass, threshold, right=True)[:, 0])
    return torch.cat(picked).clamp_max(logits.shape[-1] - 1) if picked else logits.new_zeros(0).long()


def _row_key(seed: int, row_id: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
