"""The Python API: a whole run, a finished one, and the influence matrix of a model that is at hand.

Flows in: a configuration or a run folder (or a model, its tokenizer and data). Flows out: results as data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from idealmix import config as schema
from idealmix import configfile
from idealmix.data.mixture import Mixture
from idealmix.disk import read_json
from idealmix.errors import InputError
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.rounds.watch import Silent, Watch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Data = str | Path | Mapping[str, Any]
"""A path or hub name, or a `Source` as a mapping."""


class Result(Mapping[str, Any]):
    """A finished run: the content of ``result.json`` (docs/files.md) as a mapping, and what lies beside it as objects.

    Attributes:
        folder: the run folder.
        best: the index of the chosen round.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        self.folder, self._content = folder, content
        self.best = int(content["best"])

    @classmethod
    def read(cls, folder: str | Path) -> Result:
        """A run that ended before.

        Raises:
            InputError: there is no ``result.json`` in the folder, or it is of another format.
        """
        from idealmix.report.page import check

        content = read_json(Path(folder) / "result.json")
        check(content)
        return cls(Path(folder), content)

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each domain in the chosen mixture; of a run with ``search``, at the full size."""
        chosen = self["full"] if "full" in self else self["rounds"][self.best]
        return dict(chosen["counts"])

    @property
    def mixture(self) -> Mixture:
        """The chosen mixture with its row ids. Its rows as files lie in ``folder / "mixture"``."""
        return self._drawn(self.folder, self.counts) if "full" in self else self.mixture_of(self.best)

    def mixture_of(self, index: int) -> Mixture:
        """The mixture that a round trained on; of a run with ``search``, one of the search's rounds.

        Raises:
            InputError: the folder does not hold it.
        """
        folder = self.folder / self["search"]["folder"] if "search" in self else self.folder
        place = folder / f"round-{index}" / "mixture.json"
        return (
            Mixture.read(place) if place.is_file() else self._drawn(folder, self["rounds"][index]["counts"])
        )

    def _drawn(self, folder: Path, counts: Mapping[str, int]) -> Mixture:
        """The mixture of these rows among a folder's ``trainings``, which are named by their content."""
        for place in sorted((folder / "trainings").glob("*/mixture.json")):
            found = Mixture.read(place)
            if found.counts == counts and found.seed == self["facts"]["seed"]:
                return found
        place = folder / "trainings" / "*" / "mixture.json"
        raise InputError("the folder does not hold this mixture", where=str(place), mend="run it again")

    @property
    def influence(self) -> dict[int, InfluenceMatrix]:
        """The influence matrix of every round where it was measured."""
        return {
            int(one["index"]): InfluenceMatrix.from_json(one["influence"])
            for one in self["rounds"]
            if one.get("influence")
        }

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.folder / "report.html"

    def __repr__(self) -> str:
        return f"Result({str(self.folder)!r}, round {self.best} of {len(self['rounds'])}: {self.counts})"

    def _repr_html_(self) -> str:
        """What a notebook shows: what to do, how sure that is, and the counts."""
        from idealmix.report import comparison, words

        share = words.shares(words.amounts(self, self["rounds"][self.best])[0])
        against = comparison.against_joint(self)
        full = self["full"]["counts"] if "full" in self else {}
        texts = (words.advice(share, keep=self.best == 0), f"{against.title}. {against.sentence}")
        rows = "".join(
            f"<tr><th scope='row'>{escape(name)}</th><td>{self['rounds'][0]['counts'][name]:,}</td><td>{count:,}</td>"
            + (f"<td>{full[name]:,}</td></tr>" if full else "</tr>")
            for name, count in self["rounds"][self.best]["counts"].items()
        )
        last = "<th>rows at the full size</th>" if full else ""
        head = f"<tr><th>domain</th><th>rows in joint</th><th>rows</th>{last}</tr>"
        said = "".join(f"<p>{escape(text)}</p>" for text in texts)
        return f"{said}<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def run(config: str | Path | Mapping[str, Any], watch: Watch | None = None) -> Result:
    """Run, or go on with, a whole run.

    Args:
        config: the path of a ``config.yaml``, or its content (paths relative to the working directory).
        watch: receives progress; None: silent.

    Returns:
        The finished run.

    Raises:
        InputError: the configuration, the data or the model is wrong, or the folder holds another run.
        IdealmixError: a phase failed; what was finished is kept.
    """
    from idealmix.comparison.single import run_any

    if isinstance(config, Mapping):
        settings = configfile.from_mapping(dict(config), folder=Path.cwd())
    else:
        settings = configfile.load(config)
    return Result(Path(settings.output), run_any(settings, watch or Silent()))


def influence(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    domains: Mapping[str, Data],
    references: Mapping[str, Data],
    *,
    counts: Mapping[str, int] | None = None,
    max_length: int = 512,
    settings: schema.Influence | None = None,
    seed: int = 0,
) -> InfluenceMatrix:
    """The influence matrix of a model that any trainer made; nothing is trained.

    Args:
        model: a causal language model, on its device.
        tokenizer: its tokenizer, with the chat template that it was trained with.
        domains: what it was trained on, by name.
        references: held-out good answers by capability; all rows give gradients.
        counts: rows of each domain in the training; None: all rows of all domains, once.
        max_length: tokens a row, as in training.
        settings: the configuration's ``influence`` block; None: its defaults.
        seed: of the sampled rows and labels.

    Raises:
        InputError: data, layers or settings are wrong.
        IdealmixError: something is not finite.
    """
    from idealmix.data.leaks import check_leaks
    from idealmix.data.mixture import draw
    from idealmix.data.pools import load_pool
    from idealmix.data.tokenise import Encoder
    from idealmix.influence_stage import measure

    if unknown := sorted(set(counts or {}) - set(domains)):
        raise InputError(
            f"rows are given for {unknown[0]!r}, which is not a domain",
            where="counts",
            mend=f"the domains are {', '.join(domains)}",
        )
    encoder = Encoder(tokenizer, max_length)
    pools = {
        kind: {
            name: load_pool(name, _source(f"{kind}.{name}", data), encoder, seed=seed)
            for name, data in sets.items()
        }
        for kind, sets in (("domains", domains), ("references", references))
    }
    check_leaks(pools["domains"], pools["references"], {})
    rows = counts or {name: len(pool) for name, pool in pools["domains"].items()}
    repeats = max([1, *(-(-count // max(len(pools["domains"][name]), 1)) for name, count in rows.items())])
    mixture = draw(pools["domains"], rows, seed, max_repeats=repeats)
    return measure(
        model, mixture, pools["domains"], pools["references"], settings or schema.Influence(), seed=seed
    )


def measure_checkpoint(
    config: schema.Config, model: str, mixture: Path | None, watch: Watch
) -> InfluenceMatrix:
    """``idealmix influence``: the matrix of a checkpoint on disk or the hub.

    Of a checkpoint in a run folder the training's record is read too, so that the matrix is the run's own. Several processes
    share the rows; each gets the matrix.

    Args:
        mixture: the ``mixture.json`` that it was trained on; None: the one in its run folder, else the start mixture of the
            configuration.

    Raises:
        InputError: the checkpoint is not there, ``finite`` or ``unrolled`` was asked for without a record, the data is wrong.
    """
    from idealmix.curvature import Processes
    from idealmix.data.mixture import Mixture, draw
    from idealmix.influence_stage import measure
    from idealmix.rounds.inputs import load_inputs
    from idealmix.rounds.loop import start_mixture_counts
    from idealmix.rounds.models import device
    from idealmix.rounds.phases import memory_errors
    from idealmix.training.model import computing_dtype, load_model
    from idealmix.training.record import TrainingRecord

    # as they lie in a run folder: beside the training, or one folder higher where trainings are named by their content
    training = Path(model).absolute().parent
    beside = next((place for up in training.parents[:2] if (place := up / "mixture.json").is_file()), None)
    recorded = beside is not None and (training / "record.json").is_file()
    record = TrainingRecord.read(training / "record.json") if recorded else None
    if config.influence.response != "converged" and not recorded:
        raise InputError(
            f"the {config.influence.response} response needs the training's record, which this checkpoint has not",
            where="influence.response",
            mend="use response: converged",
        )
    if mixture is None and recorded:
        mixture = beside
    watch.begin("reading the data")
    inputs = load_inputs(config, watch)
    watch.end(0.0, reused=False)
    if mixture is None:
        counts = start_mixture_counts(config, inputs)
        drawn = draw(inputs.domains, counts, config.seed, max_repeats=config.allocation.max_repeats)
    else:
        drawn = Mixture.read(mixture, inputs.domains)
    watch.begin("measuring influence")
    # trained weights are kept in float32 whatever they are computed in
    dtype = (record.dtype if record else None) or computing_dtype(config.model, config.training.dtype)
    with memory_errors("influence"):
        matrix = measure(
            load_model(model, dtype).to(device()),
            drawn,
            inputs.domains,
            inputs.gradient_halves,
            config.influence,
            record=record,
            folder=training if recorded else None,
            seed=config.seed,
            processes=Processes.all(),
            progress=watch.advance,
        )
    watch.end(0.0, reused=False)
    return matrix


def _source(where: str, data: Data) -> schema.Source:
    try:
        return schema.Source.model_validate({"path": str(data)} if isinstance(data, str | Path) else data)
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join((where, *map(str, wrong["loc"])))
        raise InputError(wrong["msg"], where=key, mend="a path, or a mapping as in docs/config.md") from error
