"""Small inputs for allocation: slopes from one list, situations from hypothesis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from idealmix.config import Allocation as Settings
from idealmix.config import Budget
from idealmix.slopes import Slopes


def slopes(names, growth, se=1e-9, dof=50.0, drawn=None, drawn_se=None) -> Slopes:
    """Slopes from unused rows; those from drawn rows are the same unless given."""
    full = lambda x: np.broadcast_to(np.asarray(x, dtype=float), len(names)).copy()  # noqa: E731
    drawn = growth if drawn is None else drawn
    drawn_se = se if drawn_se is None else drawn_se
    return Slopes(names, full(growth), full(se), full(dof), full(drawn), full(drawn_se), full(dof))


def settings(unit="tokens", hold=True, size=None, rule="scaled", **keys) -> Settings:
    return Settings(budget=Budget(unit=unit, hold=hold, size=size), rule=rule, **keys)


@dataclass
class Situation:
    """All that `allocate` takes."""

    counts: dict[str, int]
    sizes: dict[str, int]
    per_row: dict[str, float]
    slopes: Slopes
    settings: Settings

    def of(self, names) -> Situation:
        """The same with the domains in another order."""
        pick = lambda d: {n: d[n] for n in names}  # noqa: E731
        return Situation(
            pick(self.counts), pick(self.sizes), pick(self.per_row), self.slopes.sorted(names), self.settings
        )


@st.composite
def situations(draw, *, hold=True, unit=None) -> Situation:
    names = draw(st.permutations(["math", "code", "chat", "reasoning", "law", "poetry"]))
    names = names[: draw(st.integers(2, 6))]
    d = len(names)
    unit = unit or draw(st.sampled_from(["tokens", "supervised_tokens", "rows"]))
    sizes = draw(st.lists(st.integers(20, 3000), min_size=d, max_size=d))
    repeats = draw(st.integers(1, 4))
    used = draw(st.lists(st.floats(0.05, 1), min_size=d, max_size=d))
    counts = [max(1, int(repeats * s * u)) for s, u in zip(sizes, used)]
    weight = [1.0] * d if unit == "rows" else draw(st.lists(st.floats(1, 500), min_size=d, max_size=d))
    value = st.floats(-1, 1).map(lambda x: round(x, 3))
    growth = draw(st.lists(value, min_size=d, max_size=d))
    drawn = draw(st.lists(value, min_size=d, max_size=d))
    growth = [np.nan if c >= s else g for g, c, s in zip(growth, counts, sizes)]
    se = draw(st.lists(st.floats(0.01, 0.5), min_size=d, max_size=d))
    share = 1 / d
    bounds = {
        "floor": draw(st.sampled_from([0.0, 0.3 * share])),
        "cap": draw(st.sampled_from([None, min(1.0, 1.8 * share)])),
    }
    # bounds that the start keeps: else there is nothing to say about them
    volume = np.array(counts) * np.array(weight)
    shares = volume / volume.sum()
    if (shares < bounds["floor"]).any():
        bounds["floor"] = 0.0
    if bounds["cap"] is not None and (shares > bounds["cap"]).any():
        bounds["cap"] = None
    return Situation(
        dict(zip(names, counts)),
        dict(zip(names, sizes)),
        dict(zip(names, weight)),
        slopes(names, growth, se, 30.0, drawn),
        settings(
            unit=unit,
            hold=hold,
            max_repeats=repeats,
            m=draw(st.sampled_from([0.15, 0.5, 1.0])),
            gate=draw(st.booleans()),
            **bounds,
        ),
    )
