"""What an allocation is: new row counts, and for every domain and in words, why.

Flows in: figures and words. Flows out: an ``Allocation``, to JSON and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from idealmix.allocation.curves import Curves


@dataclass(frozen=True)
class Move:
    """One domain in one allocation. ``after = (1 + beta) * before``; `repeats` is how often each pool row is drawn on average."""

    before: int
    after: int
    beta: float
    slope: float | None
    slope_se: float | None
    gated: bool
    repeats: float
    note: str


@dataclass(frozen=True)
class Allocation:
    """New counts, and why. `predicted`: first-order change of the objective, before any calibration.

    `curves`: what the rule ``curves`` went by.
    """

    rule: str
    m: float
    unit: str
    amount_before: float
    amount_after: float
    predicted: float
    moves: dict[str, Move]
    reason: str
    curves: Curves | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Row counts after the allocation, in the order of the counts that were given."""
        return {name: move.after for name, move in self.moves.items()}

    @property
    def equilibrium(self) -> bool:
        """Nothing moves."""
        return all(move.after == move.before for move in self.moves.values())

    def to_json(self) -> dict[str, Any]:
        """Plain types, for ``allocation.json`` and ``result.json``."""
        curves = self.curves.to_json() if self.curves else None
        return {**asdict(self), "curves": curves, "equilibrium": self.equilibrium}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Allocation:
        """The inverse of `to_json`."""
        fields = {k: v for k, v in data.items() if k != "equilibrium"}
        moves = {name: Move(**move) for name, move in data["moves"].items()}
        curves = Curves.from_json(data["curves"]) if data.get("curves") else None
        return cls(**{**fields, "moves": moves, "curves": curves})
