"""``idealmix plan``: from a configuration to its plan and advice.

Flows in: a resolved configuration, and the name of a machine or none. Flows out: an `Outcome`, for `cli`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idealmix.config import Config
from idealmix.errors import InputError
from idealmix.plan import table
from idealmix.plan.fit import Advice, Planner
from idealmix.plan.machine import Machine, named, this_machine
from idealmix.plan.phases import Plan
from idealmix.plan.search import SearchPlanner
from idealmix.rounds.watch import Watch

if TYPE_CHECKING:
    from idealmix.rounds.inputs import Inputs


@dataclass(frozen=True)
class Outcome:
    """A plan, what to set where it does not fit, and in sentences what it is a plan of where that is not plain."""

    plan: Plan
    advice: Advice | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        advice = self.advice and {
            "settings": list(self.advice.overrides),
            "fits": self.advice.plan.fits,
            "peak": self.advice.plan.peak,
            "seconds": self.advice.plan.seconds,
        }
        return {**self.plan.to_json(), "advice": advice, "notes": list(self.notes)}

    def show(self, watch: Watch) -> None:
        """As a table and sentences."""
        watch.table(table.title(self.plan), table.COLUMNS, table.rows(self.plan))
        for note in self.notes:
            watch.note(note)
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
    for where, model in (
        ("model", settings.model),
        ("search.model", settings.search and settings.search.model),
    ):
        if model and (Path(model) / "adapter_config.json").is_file():
            raise InputError(
                "this folder holds adapters, not a model's own config",
                where=where,
                mend="merge them into their base first",
            )
    watch.begin("reading the data")
    from idealmix.rounds.inputs import load_inputs

    inputs = load_inputs(settings, watch)
    watch.end(0.0, reused=False)
    watch.begin("planning")
    dtype = _dtype(settings, known)
    here = known or this_machine(dtype, Path(settings.output))
    planner = _planner(settings, inputs, here, dtype, watch)
    plan = planner.plan()
    advice = planner.advice() if not plan.fits else None
    watch.end(0.0, reused=False)
    return Outcome(plan, advice, tuple(_notes(settings)))


def _planner(settings: Config, inputs: Inputs, machine: Machine, dtype: str, watch: Watch) -> Planner:
    """Of the run; with a ``search`` block, of the search and the one training after it."""
    from transformers import AutoConfig

    model = AutoConfig.from_pretrained(settings.model, trust_remote_code=False)
    if settings.search is None:
        return Planner(settings, model, inputs, machine, dtype)
    from idealmix.comparison.executor import Executor
    from idealmix.comparison.smaller import smaller
    from idealmix.rounds.folder import RunFolder
    from idealmix.rounds.inputs import load_inputs
    from idealmix.rounds.team import Team

    folder = RunFolder(Path(settings.output))
    executor = Executor(settings, inputs, folder, Team(), watch, seed=settings.seed, own="", label="")
    small = smaller(settings, executor.amount)
    search = _planner(small, load_inputs(small, watch), machine, _dtype(small, machine), watch)
    return SearchPlanner(
        settings, model, inputs, machine, dtype, search=search,
        smaller=lambda changed: smaller(changed, executor.amount),
    )  # fmt: skip


def _dtype(settings: Config, machine: Machine | None) -> str:
    """What a run computes in on a machine of the table, or on this one."""
    from idealmix.training.model import computing_dtype, weights_dtype

    if machine is not None and not machine.measured and settings.training.dtype == "auto":
        return weights_dtype(settings.model)  # what `auto` means on an accelerator
    return computing_dtype(settings.model, settings.training.dtype)


def _notes(settings: Config) -> Iterator[str]:
    search, method = settings.search, settings.method
    if search is not None:
        how = f" of {search.model}" if search.model else ""
        adapters = " with adapters" if search.lora else ""
        yield (
            f"search: its rounds train{how}{adapters} on {search.fraction:g} of the budget; then the mixture is trained once at "
            "the full size."
        )
    if method not in ("ideal", "ideal-paper"):
        yield (
            f"method {method}: planned are joint's training and IDEAL's phases; what {method} itself trains and measures is not "
            "counted."
        )
