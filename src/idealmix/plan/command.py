"""``idealmix plan``: from a configuration to its plan and advice.

Flows in: a resolved configuration, and the name of a machine or none. Flows out: an `Outcome`, for `cli`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idealmix.config import Config
from idealmix.errors import InputError
from idealmix.plan import table
from idealmix.plan.fit import Advice, Planner
from idealmix.plan.machine import named, this_machine
from idealmix.plan.phases import Plan
from idealmix.rounds.watch import Watch


@dataclass(frozen=True)
class Outcome:
    """A plan, and what to set where it does not fit."""

    plan: Plan
    advice: Advice | None

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        advice = self.advice and {
            "settings": list(self.advice.overrides),
            "fits": self.advice.plan.fits,
            "peak": self.advice.plan.peak,
            "seconds": self.advice.plan.seconds,
        }
        return {**self.plan.to_json(), "advice": advice}

    def show(self, watch: Watch) -> None:
        """As a table and sentences."""
        watch.table(table.title(self.plan), table.COLUMNS, table.rows(self.plan))
        for warning in self.plan.warnings:
            watch.warn(warning)
        for sentence in table.sentences(self.plan, self.advice):
            watch.note(sentence)


def plan_config(settings: Config, machine: str | None, watch: Watch) -> Outcome:
    """Plan a run on a machine of the table, or on this one.

    Raises:
        InputError: as `run --dry-run`; an unknown machine; a base model that is a folder of adapters.
    """
    known = named(machine) if machine else None  # before the data is read
    if (Path(settings.model) / "adapter_config.json").is_file():
        raise InputError(
            "this folder holds adapters, not a model's own config",
            where="model",
            mend="merge them into their base first",
        )
    watch.begin("reading the data")
    from transformers import AutoConfig

    from idealmix.rounds.inputs import load_inputs
    from idealmix.training.model import computing_dtype, weights_dtype

    inputs = load_inputs(settings, watch)
    watch.end(0.0, reused=False)
    watch.begin("planning")
    if known is not None and settings.training.dtype == "auto":
        dtype = weights_dtype(settings.model)  # what `auto` means on an accelerator
    else:
        dtype = computing_dtype(settings.model, settings.training.dtype)
    model = AutoConfig.from_pretrained(settings.model, trust_remote_code=False)
    here = known or this_machine(dtype, Path(settings.output))
    planner = Planner(settings, model, inputs, here, dtype)
    plan = planner.plan()
    advice = planner.advice() if not plan.fits else None
    watch.end(0.0, reused=False)
    return Outcome(plan, advice)
