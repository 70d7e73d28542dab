"""The command line: each command reads its input, calls one function, and shows the result.

Exit status: 0 done, 2 the user's input is wrong, 1 anything else. A user's mistake gets one message, never a
traceback. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from idealmix import __version__
from idealmix.cli_session import located, watching
from idealmix.errors import IdealmixError, InputError

app = typer.Typer(
    help="Find how much of each domain belongs in a supervised fine-tuning mixture.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ConfigFile = Annotated[Path, typer.Argument(help="The run's config.yaml.", show_default=False)]
RunPath = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: key.path=value. May be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"idealmix {__version__}")
        raise typer.Exit


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("config.yaml"),
    as_json: AsJson = False,
) -> None:
    """Write a commented configuration to start from."""
    from importlib import resources

    if path.is_dir():
        path = path / "config.yaml"
    text = resources.files("idealmix").joinpath("template.yaml").read_text(encoding="utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError:
        raise InputError(
            "this file exists already", where=str(path), mend="give another path, or move it away"
        ) from None
    except OSError as error:
        raise InputError(f"cannot write here: {error.strerror}", where=str(path)) from None
    if as_json:
        _print_json({"config": str(path)})
    else:
        typer.echo(f"wrote {path}\nEdit it, then: idealmix run {path}")


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, show the resolved configuration, train nothing."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate, measure influence, allocate, again: to the best mixture and its report.

    On an existing run folder it goes on where it stopped.
    """
    from idealmix import configfile

    settings = configfile.load(config, overrides or [])
    if dry_run:
        from idealmix.rounds.checks import check_all

        with watching(as_json) as (terminal, team), located(config, overrides):
            facts = check_all(settings, terminal, team).facts()
        if as_json:
            _print_json({"config": settings.model_dump(mode="json"), "data": facts})
        else:
            typer.echo(configfile.dump(settings))
            sources = facts.pop("sources")
            for block, sets in facts.items():
                for name, fact in sets.items():
                    typer.echo(
                        f"# {block}.{name}: {fact['rows']:,} rows, {fact['tokens']:,} tokens, "
                        f"{fact['supervised_tokens']:,} supervised"
                    )
            for name, report in sources.items():
                for text in report["warnings"]:
                    typer.echo(f"# {name}: {text}")
        return
    from idealmix.comparison.single import run_any

    with (
        watching(as_json, resume=_again("run", str(config), overrides)) as (terminal, team),
        located(config, overrides),
    ):
        result = run_any(settings, terminal, team)
    if team.leads:
        _finish(settings.output, result, as_json)


@app.command()
def compare(
    config: ConfigFile,
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="Names (docs/methods.md) or module:Class, joined by commas."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds of every method, search included.")] = 3,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train every method's mixture on one budget: gain, its error over seeds, and the cost of the search.

    On an existing folder it goes on where it stopped; more methods or seeds share what is done.
    """
    from idealmix import configfile
    from idealmix.comparison.compare import DEFAULT, compare
    from idealmix.comparison.tables import comparison_tables

    settings = configfile.load(config, overrides or [])
    names = (
        list(DEFAULT) if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    )
    if not names:
        raise InputError(
            "no method is named",
            where="--methods",
            mend=f"leave it out for {','.join(DEFAULT)}, or name some",
        )
    asked = ["compare", str(config), *(["--methods", methods] if methods else []), "--seeds", str(seeds)]
    with (
        watching(as_json, resume=_again(*asked, overrides)) as (terminal, team),
        located(config, overrides),
    ):
        content = compare(settings, names, seeds, terminal, team)
        for table in comparison_tables(content):
            terminal.table(*table)
    folder = Path(settings.output) / "compare"
    if team.leads and as_json:
        _print_json(content)
    elif team.leads:
        typer.echo(f"figures  {folder / 'comparison.json'}\npage     {folder / 'comparison.html'}")


@app.command()
def influence(
    config: ConfigFile,
    model: Annotated[
        str, typer.Option("--model", help="A checkpoint that any trainer made: folder or hub name.")
    ],
    mixture: Annotated[
        Path | None,
        typer.Option(
            "--mixture",
            help="The mixture.json it was trained on; default: its run folder's, else the start mixture.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Where to write influence.json.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure the influence matrix of a checkpoint. Nothing is trained."""
    from idealmix import configfile
    from idealmix.api import measure_checkpoint

    settings = configfile.load(config, overrides or [])
    path = output or Path(settings.output) / "influence.json"
    # before the measurement, not after it
    if mixture is not None and not mixture.is_file():
        raise InputError(
            f"there is no file {mixture}",
            where="--mixture",
            mend="give the mixture.json in the folder of the round that the checkpoint was trained in",
        )
    if path.is_dir():
        raise InputError(
            "this is a folder, and one file is written",
            where=str(path),
            mend="add a name, such as influence.json",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"this folder cannot be made: {error.strerror}", where=str(path.parent)) from None
    with watching(as_json) as (terminal, team), located(config, overrides):
        matrix = measure_checkpoint(settings, model, mixture, terminal)
        team.lead(lambda: matrix.write(path))
    if not team.leads:
        return
    if as_json:
        _print_json(matrix.to_json())
    else:
        typer.echo(f"{matrix}\nwritten to {path}")


@app.command()
def plan(
    config: ConfigFile,
    machine: Annotated[
        str | None,
        typer.Option(
            "--machine", help="h100, h200, a100-80gb, a100-40gb, l4, rtx-4090; default: this machine."
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Tell tokens, time, peak memory and disk of every phase before it starts, and settings that make it fit."""
    from idealmix import configfile
    from idealmix.plan.command import plan_config

    settings = configfile.load(config, overrides or [])
    with watching(as_json) as (terminal, _), located(config, overrides):
        found = plan_config(settings, machine, terminal)
    if as_json:
        _print_json(found.to_json())
    else:
        found.show(terminal)


@app.command()
def diagnose(
    config: ConfigFile,
    conflict: Annotated[bool, typer.Option("--conflict", help="Who helps and who hurts whom.")] = False,
    noise: Annotated[
        bool, typer.Option("--noise", help="The most helpful and the most harmful training rows.")
    ] = False,
    reference: Annotated[
        bool,
        typer.Option("--reference", help="How many reference rows are enough, and does it matter which."),
    ] = False,
    stability: Annotated[
        bool, typer.Option("--stability", help="What damping, seeds and rounds do to the mixture.")
    ] = False,
    fidelity: Annotated[
        bool, typer.Option("--fidelity", help="How near the curvatures come to the exact one.")
    ] = False,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows",
            min=2,
            help="--noise: rows listed of each domain (10); --fidelity: rows of each set, at most (24).",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=0, help="--stability: other seeds of the measurement (2).")
    ] = None,
    trainings: Annotated[
        int | None,
        typer.Option(
            "--trainings", min=0, help="--stability: other seeds of the training, trained anew (0)."
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Answer one question about a run at its best round; without a run, train round 0 and ask there.

    All but --fidelity cost about one influence stage; --stability one more for each seed. --fidelity solves one linear
    system for each reference set, each by some tens to hundreds of passes over the sampled rows: minutes for a model of a
    million parameters, out of reach for billions.
    """
    asked = {
        "conflict": conflict,
        "noise": noise,
        "reference": reference,
        "stability": stability,
        "fidelity": fidelity,
    }
    chosen = [name for name, given in asked.items() if given]
    if len(chosen) != 1:
        raise InputError(
            f"{'nothing' if not chosen else 'more than one question'} to diagnose was chosen",
            mend=f"give one of {', '.join(f'--{name}' for name in asked)}",
        )
    for option, given, of in (
        ("--rows", rows, ("noise", "fidelity")),
        ("--seeds", seeds, ("stability",)),
        ("--trainings", trainings, ("stability",)),
    ):
        if given is not None and chosen[0] not in of:
            raise InputError(
                f"--{chosen[0]} does not use it",
                where=option,
                mend=f"leave it out; it belongs to {' and '.join(f'--{name}' for name in of)}",
            )
    from idealmix import configfile
    from idealmix.diagnose.command import SEEDS
    from idealmix.diagnose.command import diagnose as ask

    settings = configfile.load(config, overrides or [])
    with watching(as_json) as (terminal, _), located(config, overrides):
        answer, page = ask(
            settings,
            chosen[0],
            terminal,
            rows,
            seeds=SEEDS if seeds is None else seeds,
            trainings=trainings or 0,
        )
        answer.show(terminal)
    if as_json:
        _print_json(answer.to_json())
    else:
        typer.echo(f"figures  {page.parent / f'{answer.question}.json'}\npage     {page}")


@app.command()
def report(path: RunPath, as_json: AsJson = False) -> None:
    """Write a run's report.html again."""
    from idealmix.report.page import write

    if not (path / "result.json").is_file():
        raise InputError(
            "no run has ended in this folder",
            where=str(path),
            mend="give the folder that `idealmix run` wrote to (its config's `output`); of one that is going `idealmix view` shows the page",
        )
    page = write(path)
    if as_json:
        _print_json({"report": str(page)})
    else:
        typer.echo(f"wrote {page}")


@app.command()
def view(
    path: RunPath,
    port: Annotated[int, typer.Option("--port", help="0: a free one.", min=0, max=65535)] = 0,
    as_json: AsJson = False,
) -> None:
    """Show a run's page in the browser, on this machine only, and follow the run while it goes. Ctrl-C ends it."""
    from idealmix.view.server import port_of, serve

    server = serve(path, port)
    url = f"http://127.0.0.1:{port_of(server)}/"
    if as_json:
        _print_json({"url": url})
    else:
        typer.echo(f"{url}   Ctrl-C ends")
    sys.stdout.flush()

    def stop(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        if not as_json:
            typer.echo("ended")
    finally:
        server.server_close()
        signal.signal(signal.SIGTERM, previous)


@app.command()
def export(
    path: RunPath,
    target: Annotated[
        str,
        typer.Option(
            "--to", help="trl, llama-factory, axolotl, ms-swift, open-instruct, nemo, hf-dataset or csv."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="An absent or empty folder; default: RUN/export/TARGET.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's final mixture as files that another trainer takes as they are."""
    from idealmix import export as exports

    exported = exports.export(path, target, output)
    if as_json:
        _print_json(exported.to_json())
    else:
        typer.echo(f"wrote {exported.folder}\nThere: {exported.command}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", help="The run folder.")] = Path("runs/demo"),
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop on the built-in skills: a small model, five generated domains, a few minutes."""
    from idealmix import configfile
    from idealmix.rounds.loop import run_rounds
    from idealmix.skills import demo_config, write_suite

    data = output.resolve() / "data"
    write_suite(data)
    settings = configfile.from_mapping(
        {**demo_config(data), "output": str(output.resolve())}, overrides or [], folder=Path.cwd()
    )
    with watching(as_json, resume=_again("demo", "--output", str(output), overrides)) as (terminal, team):
        result = run_rounds(settings, terminal, team)
    if team.leads:
        _finish(settings.output, result, as_json)


# --- shared by the commands ----------------------------------------------------------------------------------


def _again(*parts: str | list[str] | None) -> str:
    """The command that goes on with a run, overrides included."""
    words = ["idealmix"]
    for part in parts:
        words += [part] if isinstance(part, str) else [w for o in part or [] for w in ("--set", o)]
    return shlex.join(words)


def _finish(output: str, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(result)
    else:
        typer.echo(f"mixture  {Path(output) / 'mixture'}\nreport   {Path(output) / 'report.html'}")


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, ensure_ascii=False, allow_nan=False))


def main() -> None:
    """Entry point: run a command, turn failures into messages and exit statuses."""
    try:
        app()
    except IdealmixError as error:
        from idealmix.terminal import fail

        if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
            fail(error.message())
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
