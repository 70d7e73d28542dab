"""Settings that make a run fit, found by planning again with one setting after the other.

Flows in: a configuration, its data, a machine. Flows out: the plan as it is, and overrides with which everything fits, or as
few as were tried before nothing was left to try. Changes that keep the results come first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idealmix import config, configfile
from idealmix.plan.machine import Machine
from idealmix.plan.phases import Plan, make_plan
from idealmix.plan.shapes import Blueprint
from idealmix.plan.work import Work, count

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from idealmix.rounds.inputs import Inputs


@dataclass(frozen=True)
class Advice:
    """How to make a run fit.

    Attributes:
        overrides: ``key=value``, in the order they were needed; empty where the run fits as it is.
        plan: with them.
    """

    overrides: tuple[str, ...]
    plan: Plan


class Planner:
    """Plans one run under changing settings.

    Args:
        settings: the configuration.
        model: the model's config.
        inputs: the tokenised data.
        machine: where it is to run.
        dtype: what it computes in.
    """

    def __init__(
        self, settings: config.Config, model: PreTrainedConfig, inputs: Inputs, machine: Machine, dtype: str
    ) -> None:
        self.settings, self._model, self._inputs = settings, model, inputs
        self._machine, self._dtype = machine, dtype
        self._blueprints: dict[Any, Blueprint] = {}
        self._work: dict[Any, Work] = {}

    def plan(self, settings: config.Config | None = None) -> Plan:
        """With these settings; None: the configuration's own."""
        settings = settings or self.settings
        lora = settings.training.lora
        key = None if lora is None else lora.model_dump_json()
        if key not in self._blueprints:
            self._blueprints[key] = Blueprint(self._model, lora)
        blueprint = self._blueprints[key]
        return make_plan(settings, blueprint, self._counted(settings, blueprint), self._machine, self._dtype)

    def advice(self) -> Advice:
        """Settings until everything fits, each kept only if it lowers the peak of a phase that does not."""
        settings, plan = self.settings, self.plan()
        taken: dict[str, str] = {}
        for step in _steps(self.settings):
            lacking = {_kind(phase.name) for phase in plan.lacking}
            if not lacking:
                break
            if step.kind not in lacking:
                continue
            overrides = [f"{key}={value}" for key, value in step.values.items()]
            # the resolved paths are absolute: the folder does not matter
            changed = configfile.from_mapping(settings.model_dump(mode="json"), overrides, folder=Path.cwd())
            tried = self.plan(changed)
            if _peak(tried, step.kind) < _peak(plan, step.kind):
                settings, plan = changed, tried
                taken |= step.values
        return Advice(tuple(f"{key}={value}" for key, value in taken.items()), plan)

    def _counted(self, settings: config.Config, blueprint: Blueprint) -> Work:
        """Rows are drawn and dealt again only where the settings concern that."""
        widest = max(max(each.d_in, each.d_out) for each in blueprint.layers(settings.influence.layers))
        training = settings.training
        key = training.per_device_train_batch_size, training.gradient_accumulation_steps, widest
        if key not in self._work:
            self._work[key] = count(settings, self._inputs, widest=widest)
        return self._work[key]


@dataclass(frozen=True)
class _Step:
    """One thing to try: what it helps (``train``, ``measure``) and the keys that it sets."""

    kind: str
    values: dict[str, str]


def _steps(settings: config.Config) -> Iterator[_Step]:
    """What to try, in order: first what changes nothing but time, then what changes what is trained or measured."""
    training, influence = settings.training, settings.influence
    rows, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    step = rows * accumulation
    while rows > 1:
        rows = -(-rows // 2)
        yield _Step(
            "train",
            {
                "training.per_device_train_batch_size": str(rows),
                "training.gradient_accumulation_steps": str(-(-step // rows)),
            },
        )
    if not training.gradient_checkpointing:
        yield _Step("train", {"training.gradient_checkpointing": "true"})
    tokens = influence.batch_tokens
    while tokens > training.max_length:
        tokens = max(tokens // 2, training.max_length)
        yield _Step("measure", {"influence.batch_tokens": str(tokens)})
    if influence.store != "disk":
        yield _Step("measure", {"influence.store": "disk"})
    if influence.layers != "mlp" and settings.method == "ideal" and training.lora is None:
        yield _Step("measure", {"influence.layers": "mlp"})
    if training.lora is None and training.backend == "trl":
        yield _Step("train", {"training.lora": "{r: 16}"})


def _kind(phase: str) -> str:
    return "train" if phase == "train" else "measure"


def _peak(plan: Plan, kind: str) -> float:
    return max(phase.peak or 0.0 for phase in plan.phases if _kind(phase.name) == kind)
