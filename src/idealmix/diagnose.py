"""``idealmix diagnose --fidelity``: the comparison of curvatures on a finished run.

Flows in: a run's configuration, whose output folder holds ``result.json``. Flows out: a `Fidelity` at the checkpoint of the best
round, and its table.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from idealmix.config import Config
from idealmix.curvature import make_batches
from idealmix.data.mixture import Mixture
from idealmix.data.seeding import seeded_order
from idealmix.diagnostics.fidelity import Fidelity, Sets, measure_fidelity
from idealmix.errors import InputError
from idealmix.rounds.folder import read_json
from idealmix.rounds.inputs import load_inputs
from idealmix.rounds.phases import device, memory_errors
from idealmix.rounds.watch import Watch
from idealmix.training.model import load_model
from idealmix.training.record import TrainingRecord

if TYPE_CHECKING:
    from idealmix.curvature import Batch
    from idealmix.data.pools import Pool

COLUMNS = ("curvature", "cosine, median", "lowest", "size", "worst layer")


def fidelity_of_run(config: Config, rows: int, watch: Watch) -> Fidelity:
    """Compare curvatures with exact influence at the best round's checkpoint.

    Args:
        rows: of every domain and reference set, at most; drawn rows of the mixture, each once.

    Raises:
        InputError: the folder holds no finished run, or its checkpoint is gone.
    """
    folder = Path(config.output)
    if not (folder / "result.json").is_file():
        raise InputError(
            "this folder holds no finished run", where=str(folder), mend="idealmix run CONFIG makes one"
        )
    where = folder / f"round-{read_json(folder / 'result.json')['best']}"
    record = TrainingRecord.read(where / "train" / "record.json")
    watch.begin("reading the data")
    inputs = load_inputs(config, watch)
    mixture = Mixture.read(where / "mixture.json", inputs.domains)
    drawn = {name: ids for name, ids in mixture.row_ids.items() if ids}

    def batches(name: str, pool: Pool, ids: list[str]) -> list[Batch]:
        order = seeded_order(ids, config.seed, "fidelity", name)[:rows]
        chosen = [pool.row(pool.index[ids[k]]) for k in sorted(order)]
        listed = [(f"{name}/{row.id}", row.input_ids, row.labels, 1.0) for row in chosen]
        return make_batches(listed, config.influence.batch_tokens)

    mixed = {
        name: batches(name, inputs.domains[name], list(dict.fromkeys(ids))) for name, ids in drawn.items()
    }
    sets = Sets(
        mixed,
        mixed,
        {name: batches(name, pool, list(pool.ids)) for name, pool in inputs.gradient_halves.items()},
        {name: record.step_weights.get(name, 0.0) for name in drawn},
    )
    watch.begin("comparing curvatures")
    with memory_errors("fidelity"):
        model = load_model(record.model_folder(where / "train"), "float32").to(device())
        found = measure_fidelity(
            model,
            sets,
            layers=config.influence.layers,
            rho=config.influence.damping,
            label_seed=config.seed,
            watch=lambda text: watch.begin(f"fidelity: {text}"),
        )
    watch.end(0.0, reused=False)
    return found


def show(found: Fidelity, watch: Watch) -> None:
    """As a table, and what it means."""
    watch.table(
        "cosine of influence with the exact one, rows centred over domains",
        COLUMNS,
        [
            (
                one.curvature,
                f"{one.median:.3f}",
                f"{min(one.cosines.values()):.3f}",
                f"{statistics.median(one.sizes.values()):.3g}",
                f"{min(one.by_layer.values()):.3f}",
            )
            for one in found.approximation
        ],
    )
    watch.note(
        "exact: conjugate gradients on the Gauss-Newton matrix of the same layers, rows and damping; "
        f"{sum(one.iterations for one in found.solved)} products, residuals at most "
        f"{max(one.residual for one in found.solved):.1e}"
    )
    if not found.informative:
        watch.warn(
            "the plain dot of gradients does well here too: this run cannot tell one curvature from another"
        )
    watch.note(
        "this says how well the curvature is approximated on a small sample of rows, not whether influence predicts retraining"
    )
