"""A plan as text: a table for a screen or a log, and what to do where it does not fit.

Flows in: a `Plan` and `Advice`. Flows out: title, columns, rows and sentences for `terminal.Terminal`.
"""

from __future__ import annotations

from idealmix.plan.fit import Advice
from idealmix.plan.machine import GIB
from idealmix.plan.phases import Phase, Plan
from idealmix.report.words import duration, whole

COLUMNS = ["phase", "times", "tokens", "time each", "peak memory", "disk each"]


def title(plan: Plan) -> str:
    """The model and the machine in one line."""
    shape, machine = plan.shape, plan.machine
    trained = "" if shape.trained == shape.parameters else f", {whole(shape.trained)} of them trained"
    rate = machine.rate(plan.dtype) / 1e12
    how = "measured" if machine.measured else "data sheet"
    return (
        f"{whole(shape.parameters)} parameters{trained}, in {plan.dtype}, on {machine.name}: "
        f"{size(machine.memory)} free, {rate:,.3g} TFLOP/s ({how}), of which passes are taken to reach "
        f"{100 * machine.share:.0f} %"
    )


def rows(plan: Plan) -> list[list[str]]:
    """A row for each phase, and the totals."""
    found = [_row(phase, plan) for phase in plan.phases]
    return [
        *found,
        ["all", "", whole(plan.tokens), duration(plan.seconds), size(plan.peak), size(plan.disk)],
    ]


def sentences(plan: Plan, advice: Advice | None) -> list[str]:
    """Whether it fits, and what to set where it does not."""
    found = []
    for phase in plan.lacking:
        held = max(phase.moments, key=lambda moment: phase.moments[moment])
        found.append(
            f"{phase.round}, {phase.name} needs {size(phase.peak or 0)} (at its moment '{held}'), and there are "
            f"{size(plan.machine.memory)}"
        )
    disk = plan.machine.disk
    if disk is not None and plan.disk > disk:
        found.append(f"the run folder grows to {size(plan.disk)}, and the disk has {size(disk)} free")
    if not found:
        found.append("It fits as it is.")
    elif advice and advice.overrides:
        sets = " ".join(f"--set '{override}'" for override in advice.overrides)
        lead = (
            "It fits with"
            if advice.plan.fits
            else f"It does not fit; these bring the peak down to {size(advice.plan.peak)}:"
        )
        found.append(f"{lead} {sets}")
    else:
        found.append("No setting that was tried makes it fit.")
    return found


def size(amount: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{amount / GIB:,.1f} GiB" if amount >= GIB else f"{amount / 2**20:,.0f} MiB"


def _row(phase: Phase, plan: Plan) -> list[str]:
    over = " !" if phase in plan.lacking else ""
    return [
        f"{phase.round}: {phase.name}",
        str(phase.times),
        "?" if phase.tokens is None else whole(phase.tokens),
        "?" if phase.seconds is None else duration(phase.seconds),
        "?" if phase.peak is None else f"{size(phase.peak)}{over}" if phase.peak else "",
        size(phase.disk) if phase.disk else "",
    ]
