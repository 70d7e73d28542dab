"""What can be known of a run before anything is trained: its rows and steps, its methods' options, its layers.

Flows in: a resolved configuration and its data. Flows out: nothing, or the error that the run would end with later.
"""

from __future__ import annotations

import os
from pathlib import Path

from idealmix.config import Config
from idealmix.data.mixture import draw
from idealmix.errors import InputError
from idealmix.methods import load_method
from idealmix.rounds.folder import RunFolder
from idealmix.rounds.inputs import Inputs, load_inputs
from idealmix.rounds.team import Team
from idealmix.rounds.watch import Watch


def check_all(config: Config, watch: Watch, team: Team) -> Inputs:
    """Everything that shows without the model's weights; of a run with ``search``, the search too.

    Raises:
        InputError: what `load_inputs`, `check_before` and `check_output` refuse, a folder that holds another run, a mixture that
            cannot be drawn or dealt into steps, something that the method lacks.
    """
    from idealmix.comparison.executor import Executor  # above this room, as the run itself is
    from idealmix.comparison.smaller import smaller
    from idealmix.rounds.loop import on_the_way, refuse_another, start_mixture_counts
    from idealmix.training.order import plan_steps

    check_output(Path(config.output))
    refuse_another(Path(config.output), config, on_the_way)
    watch.begin("reading the data")
    inputs = load_inputs(config, watch)
    watch.end(0.0, reused=False)
    check_before(config, inputs)
    training, counts = config.training, start_mixture_counts(config, inputs)
    mixture = draw(inputs.domains, counts, config.seed, max_repeats=config.allocation.max_repeats)
    if training.backend == "trl":  # an outside command deals its own steps
        plan_steps(
            mixture,
            inputs.domains,
            seed=config.seed,
            epochs=training.epochs,
            micro_batch_rows=training.per_device_train_batch_size,
            accumulation=training.gradient_accumulation_steps,
            processes=team.size,
        )
    if config.search or config.method not in ("ideal", "ideal-paper"):
        folder = RunFolder(Path(config.output))
        executor = Executor(config, inputs, folder, team, watch, seed=config.seed, own="", label="")
        if config.search:
            check_all(smaller(config, executor.amount), watch, team)
        else:
            executor.check(load_method(config.method, config.methods.get(config.method)))
    return inputs


def check_output(output: Path) -> None:
    """Whether a run folder can be made, or written to where it is; nothing is written.

    Raises:
        InputError: something on its way is no folder, or may not be written to.
    """
    there = next(place for place in (output, *output.parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{there} is a file, not a folder", where="output", mend="set another `output`")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"the folder {there} may not be written to", where="output", mend="set another `output`"
        )


def check_before(config: Config, inputs: Inputs) -> None:
    """What takes a moment, and would else show after the first training.

    Raises:
        InputError: bounds or a budget that no mixture holds, wrong options of a method, a pattern that matches no layer.
    """
    from idealmix.rounds.loop import start_mixture_counts  # it checks before it runs

    start_mixture_counts(config, inputs)
    for name in dict.fromkeys([config.method, *config.methods]):
        load_method(name, config.methods.get(name))
    measured = config.method in ("ideal", "ideal-paper") or ":" in config.method
    # a search measures its own model, and what an outside command leaves is not known yet
    if measured and not config.search and config.training.backend == "trl":
        from transformers import AutoConfig

        from idealmix.plan.shapes import Blueprint

        shape = AutoConfig.from_pretrained(config.model, trust_remote_code=False)
        Blueprint(shape, config.training.lora).selected(config.influence.layers)
