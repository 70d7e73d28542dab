"""The plan of a run with a ``search`` block: the search's rounds at their size, then one training at the full size.

Flows in: planners of both. Flows out: one `Plan` that `fit` advises on like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from idealmix import config
from idealmix.plan.fit import Planner
from idealmix.plan.phases import Plan


class SearchPlanner(Planner):
    """Plans the search and the training after it.

    Args:
        full: of `Planner`, for the training at the full size.
        search: plans the search.
        smaller: the search's settings from the run's.
    """

    def __init__(
        self, *full: Any, search: Planner, smaller: Callable[[config.Config], config.Config]
    ) -> None:
        super().__init__(*full)
        self._search, self._smaller = search, smaller

    def plan(self, settings: config.Config | None = None) -> Plan:
        """Both, one after the other; sizes are those of the full model, measured layers those of the search."""
        settings = settings or self.settings
        once = settings.allocation.model_copy(update={"rounds": 1})
        full = super().plan(settings.model_copy(update={"allocation": once}))
        search = self._search.plan(self._smaller(settings))
        before = [replace(phase, round=f"search, {phase.round}") for phase in search.phases]
        after = [
            replace(phase, round="full size" if phase.round == "round 0" else f"full size, {phase.round}")
            for phase in full.phases
        ]
        warnings = dict.fromkeys((*search.warnings, *full.warnings))
        return replace(full, measured=search.measured, phases=(*before, *after), warnings=tuple(warnings))
