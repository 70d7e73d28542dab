"""The documentation against the program: links, commands, navigation; with -m slow every command is run, and the site built."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
import yaml
from rounds_helpers import idealmix, project

from idealmix.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What a command on a page stands for in a folder where `idealmix run config.yaml` has ended.
MEANT = {
    "path/to/checkpoint": "runs/first/round-0/train/model",
    "CHECKPOINT": "runs/first/round-0/train/model",
    "CKPT": "runs/first/round-0/train/model",
    "mixture.json": "runs/first/round-0/mixture.json",
    "RUN": "runs/first",
    "TARGET": "csv",
    "runs/diagnosed/config.yaml": "config.yaml",
    "CONFIG": "config.yaml",
    "--QUESTION": "--noise",
    "config.yaml": "config.yaml",
}


def commands(page: Path) -> Iterator[list[str]]:
    """Every `idealmix ...` that a page gives, in a block or in backticks, without its comment."""
    for line in page.read_text(encoding="utf-8").splitlines():
        block = re.match(r"^ {4,}(idealmix [a-z].*)$", line)
        found = [block.group(1)] if block else re.findall(r"`(idealmix [a-z][^`]*)`", line)
        for text in found:
            words = shlex.split(re.sub(r"\[[^]]*\]", "", text.split(" #")[0]))[1:]  # [what may be left out]
            yield [MEANT.get(word, word) for word in words]


EVERY = sorted({(page.relative_to(ROOT).as_posix(), *words) for page in PAGES for words in commands(page)})


@pytest.mark.parametrize("given", EVERY, ids=" ".join)
def test_commands_parse(given: tuple[str, ...]) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    name, *rest = given[1:]
    assert name in group.commands, f"{given[0]}: no command {name!r}"
    if not rest:  # named in a sentence
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        command = group.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"{given[0]}: {name} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def _listed(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _listed(part)


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = sorted(_listed(nav))
    assert listed == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    )


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "idealmix" in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    project(folder, output="runs/first")
    done = subprocess.run(
        [sys.executable, "-m", "idealmix", "run", "config.yaml"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


# Served until it is stopped; a run of minutes that `make demo` does; overwrites what is there.
# What a page's own lines make first, and what serves instead.
MADE = {"examples/paper-cpu-four.yaml": "examples/paper-cpu.yaml", "runs/compared/config.yaml": "config.yaml"}
ELSEWHERE = {"view": "tests/test_view.py", "demo": "make demo", "init": "tests/test_config.py"}


@pytest.mark.slow
@pytest.mark.parametrize("words", sorted({given[1:] for given in EVERY if len(given) > 2}), ids=" ".join)
def test_commands_run(words: tuple[str, ...], ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] in ELSEWHERE:
        assert (ROOT / ELSEWHERE[words[0]]).exists() or ELSEWHERE[words[0]].startswith("make ")
        return
    words = tuple(MADE.get(word, word) for word in words)
    if any(word.startswith("examples/") for word in words):
        assert all((ROOT / word).exists() for word in words if word.startswith("examples/"))
        return  # on a real model: hours
    monkeypatch.chdir(ended)
    given = list(words)
    if "--methods" in given:  # of the same kind, but in a minute
        folder = f"runs/of-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:8]}"  # with other settings: a folder of its own
        given += [
            "--set",
            "methods.random.k=1",
            "--set",
            "allocation.replicates=0",
            "--set",
            f"output={folder}",
        ]
    done = idealmix(*given)
    assert done.returncode == 0, done.stdout + done.stderr
