"""The end of a run, by whatever method: how it failed if it did, the final mixture, the result and the report.

Flows in: the story of a run whose rounds are over and whose test sets are scored. Flows out: warnings, ``mixture/``, the last table
on the terminal; then ``manifest.json``, ``draw.json``, ``result.json`` and the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idealmix.disk import write_json
from idealmix.rounds import result, tables
from idealmix.rounds.folder import RunFolder
from idealmix.rounds.inputs import Inputs
from idealmix.rounds.phases import Phases
from idealmix.rounds.signatures import signatures
from idealmix.rounds.volume import Drawn
from idealmix.rounds.watch import Watch

if TYPE_CHECKING:
    from idealmix.rounds.loop import Story


def conclude(story: Story, phases: Phases, watch: Watch) -> None:
    """Say what went wrong without an error, write the chosen mixture's rows, show it beside joint.

    Raises:
        RuntimeError: the rounds are not over.
    """
    if story.state is None:
        raise RuntimeError("a run is concluded when its rounds are over")
    for warning in signatures(story):
        story.warnings.append(warning)
        watch.warn(warning)
    phases.materialise(story.rounds[story.state.best].mixed)
    if table := tables.final_table(story):
        watch.table(*table)
    watch.note(story.state.reason)


def finish(story: Story, inputs: Inputs, folder: RunFolder) -> dict[str, Any]:
    """Write ``manifest.json``, ``draw.json``, ``result.json`` and the report; returns the result."""
    content = result.assemble(story, folder)
    unit, seed = story.config.allocation.budget.unit, story.config.seed
    drawn = Drawn(inputs.domains, unit, seed)
    amount = drawn.amount(story.rounds[0].mixed.mixture.counts)
    write_json(
        folder.path / "draw.json",
        {"format": 1, "unit": unit, "seed": seed, "amount": amount, "domains": drawn.to_json()},
    )
    write_json(folder.path / "manifest.json", result.manifest(story, inputs))
    write_json(folder.path / "result.json", content)
    from idealmix.report.page import write

    write(folder.path)
    return content
