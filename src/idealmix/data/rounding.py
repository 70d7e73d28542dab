"""Real shares to exact integer counts by the largest remainder, within bounds.

Flows in: shares (any scale), a total, bounds. Flows out: integers that sum to the total. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from idealmix.errors import InputError


def largest_remainder(
    shares: ArrayLike,
    total: int,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Integer counts nearest to `shares` that sum to `total` exactly and keep the bounds.

    The real solution is ``x = clip(f * shares, lower, upper)`` with the one scale f at which it sums to `total`;
    each count is x rounded down or up, and those of the largest fractions are rounded up (ties: first come).
    Shares of zero stay at their lower bound unless all others are full; then they share the rest equally.

    Args:
        shares: (D,) wanted proportions or counts, finite, >= 0.
        total: what the counts sum to.
        lower, upper: (D,) whole numbers (or one for all); None: 0 and `total`.
        names: of the entries, for messages.

    Raises:
        InputError: shares that are negative or not finite, crossed bounds, or bounds that no counts can keep.
    """
    wanted = np.atleast_1d(np.asarray(shares, float))
    low = np.broadcast_to(np.asarray(0 if lower is None else lower, np.int64), wanted.shape)
    high = np.broadcast_to(np.asarray(total if upper is None else upper, np.int64), wanted.shape)
    _check(wanted, int(total), low, high, names)
    exact = _scaled(wanted, int(total), low, high)
    counts = np.clip(np.floor(exact + 1e-9 * np.maximum(1.0, exact)).astype(np.int64), low, high)
    # Floating point may leave the sum off by a few either way; each pass moves every entry with room at most once.
    while left := int(total) - int(counts.sum()):
        step = 1 if left > 0 else -1
        room = (counts < high) if step > 0 else (counts > low)
        by_fraction = np.argsort(-step * (exact - counts), kind="stable")
        counts[by_fraction[room[by_fraction]][: abs(left)]] += step
    return counts


def _check(
    wanted: NDArray[np.float64],
    total: int,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    names: Sequence[str] | None,
) -> None:
    def name(index: int) -> str:
        return names[index] if names else f"entry {index}"

    for bad, what in (
        (~np.isfinite(wanted) | (wanted < 0), "its share is negative or not a number"),
        (low > high, "its smallest allowed count exceeds its largest"),
        (low < 0, "its smallest allowed count is negative"),
    ):
        if bad.any():
            raise InputError(what, where=name(int(np.argmax(bad))))
    if not int(low.sum()) <= total <= int(high.sum()):
        raise InputError(
            f"{total:,} rows were asked for, and the bounds allow {int(low.sum()):,} to {int(high.sum()):,}",
            mend="change the total, or loosen the floors, caps or max_repeats",
        )


def _scaled(
    wanted: NDArray[np.float64], total: int, low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.float64]:
    """``clip(f * wanted, low, high)`` that sums to `total`; the sum is piecewise linear and rising in f."""
    has = wanted > 0
    if not has.any():
        return _scaled(np.ones_like(wanted), total, low, high)
    if (full := int(high[has].sum())) < total - int(low[~has].sum()):
        out = high.astype(float)
        out[~has] = _scaled(np.ones(int((~has).sum())), total - full, low[~has], high[~has])
        return out
    with np.errstate(over="ignore"):
        kinks = np.unique(np.concatenate([[0.0], (low[has] / wanted[has]), (high[has] / wanted[has])]))
    kinks = kinks[np.isfinite(kinks)]
    sums = np.array([np.clip(f * wanted, low, high).sum() for f in kinks])
    k = int(np.searchsorted(sums, total))
    if k >= len(kinks):
        factor = kinks[-1]
    elif k == 0 or sums[k] == sums[k - 1]:
        factor = kinks[k]
    else:
        factor = kinks[k - 1] + (kinks[k] - kinks[k - 1]) * (total - sums[k - 1]) / (sums[k] - sums[k - 1])
    return np.clip(factor * wanted, low, high)
