"""Volumes in the budget's unit: of a pool's row on average, and of the rows that a seed really draws.

Flows in: pools, counts, a seed. Flows out: volumes, and an allocation whose drawn rows hold the budget: rows of one pool
differ in length, so counts that hold it on average can miss it by some per cent.
"""

from __future__ import annotations

import base64
import bisect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from idealmix import config
from idealmix.allocation import Allocation
from idealmix.data.mixture import drawn_order
from idealmix.data.pools import Pool
from idealmix.volumes import row_bounds


def row_volumes(pool: Pool, unit: str) -> np.ndarray:
    """(N,) the volume of each row."""
    return {
        "tokens": pool.tokens,
        "supervised_tokens": pool.supervised,
        "rows": np.ones(len(pool), np.int64),
    }[unit]


def mean_volumes(pools: Mapping[str, Pool], unit: str) -> dict[str, float]:
    """Mean volume of a row of each pool."""
    return {name: float(row_volumes(pool, unit).mean()) for name, pool in pools.items()}


CORRECTION = 0.05
"""Of a mover's rows: the most that rounding to the drawn rows' volume may add or take, but for the last mover's."""


class Drawn:
    """Volumes of the prefixes that `data.mixture.draw` takes with one seed."""

    def __init__(self, pools: Mapping[str, Pool], unit: str, seed: int) -> None:
        self._pools, self._sizes = pools, {name: len(pool) for name, pool in pools.items()}
        self._sums = {
            name: np.concatenate([[0], np.cumsum(row_volumes(pool, unit)[drawn_order(pool, seed, name)])])
            for name, pool in pools.items()
        }

    def to_json(self, most: int = 150_000) -> dict[str, Any]:
        """What ``draw.json`` holds of each domain: its prefix sums, from which any count's volume follows.

        ``increments`` are between every ``stride``-th prefix (and the whole pool at the end): unsigned LEB128 numbers in
        base64. The stride is 1, and counts are exact, unless the pools have more than `most` rows in all.
        """
        stride = -(-sum(len(pool) for pool in self._pools.values()) // most)
        return {
            name: {
                "rows": len(pool),
                "stride": stride,
                "increments": _packed(np.diff(self._sums[name][_every(len(pool), stride)])),
            }
            for name, pool in self._pools.items()
        }

    def amount(self, counts: Mapping[str, int]) -> int:
        """The volume of all rows that these counts draw."""
        return sum(self._one(name, count) for name, count in counts.items())

    def _one(self, name: str, count: int) -> int:
        whole, rest = divmod(count, len(self._pools[name]))
        return int(whole * self._sums[name][-1] + self._sums[name][rest])

    def _nearest(self, name: str, volume: float, low: int, high: int) -> int:
        """The count between `low` and `high` whose rows come nearest to a volume."""
        above = low + bisect.bisect_left(
            range(low, high + 1), volume, key=lambda count: self._one(name, count)
        )
        return min(
            {max(above - 1, low), min(above, high)},
            key=lambda count: (abs(self._one(name, count) - volume), count),
        )

    def hold(self, step: Allocation, amount: float, settings: config.Allocation) -> Allocation:
        """The same step with its movers' counts changed by a few rows, so that the rows drawn amount to `amount`.

        The mover with the heaviest rows is changed first, the lightest last, each but the last by a row or `CORRECTION` of its rows
        at most; none turns round or goes beyond floor, cap or ``max_repeats``, and domains that keep their count keep it. What remains
        is about half a row.
        """
        counts, names = step.counts, sorted(step.counts)
        mean = {name: self._sums[name][-1] / len(self._pools[name]) for name in names}
        sizes, weights = (np.array([float(of[name]) for name in names]) for of in (self._sizes, mean))
        lower, upper = row_bounds(names, sizes, weights, settings, amount, held=False)
        least, most = dict(zip(names, lower.astype(int))), dict(zip(names, upper.astype(int)))
        movers = [name for name, move in step.moves.items() if move.after != move.before]
        order = sorted(movers, key=lambda name: (-mean[name], name))
        for name in order:
            before, after = step.moves[name].before, counts[name]
            # a step never leaves a domain beyond its bounds by more than it found it
            if after > before:
                low, high = before + 1, max(int(most[name]), after)
            else:
                low, high = min(int(least[name]), after), before - 1
            if name != order[-1]:
                reach = max(int(CORRECTION * after), 1)
                low, high = max(low, after - reach), min(high, after + reach)
            wanted = self._one(name, after) + amount - self.amount(counts)
            counts[name] = self._nearest(name, wanted, low, high)
        moves = {
            name: replace(
                move,
                after=counts[name],
                beta=counts[name] / move.before - 1 if move.before else move.beta,
                repeats=counts[name] / len(self._pools[name]),
            )
            for name, move in step.moves.items()
        }
        return replace(step, moves=moves, amount_after=float(self.amount(counts)))


def _every(rows: int, stride: int) -> np.ndarray:
    """Places of the prefixes that are kept: none of the rows, every `stride`-th, all."""
    return np.unique(np.append(np.arange(0, rows, stride), rows))


def _packed(numbers: np.ndarray) -> str:
    out = bytearray()
    for number in numbers.tolist():
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return base64.b64encode(out).decode()
