"""The Python API: every example of docs/python.md runs; tables, pictures and HTML hold the matrix's own figures."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from report_helpers import sample
from rounds_helpers import project
from whatif_helpers import Run

import idealmix
from idealmix.data.mixture import Part
from idealmix.disk import write_json

DOC = Path(__file__).parent.parent / "docs" / "python.md"
PLOTS = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as the page means it: config.yaml, data/math, data/code, runs/first."""
    folder = tmp_path_factory.mktemp("api")
    path = project(folder, output="runs/first")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    (folder / "data").mkdir()
    for old, new, name in (("count", "math", "mathematics"), ("swap", "code", "coding")):
        (folder / old).rename(folder / "data" / new)
        for block, file in (("domains", "train"), ("references", "reference"), ("tests", "test")):
            config[block][name] = f"data/{new}/{file}.jsonl"
            del config[block][old]
    config["scores"] = {}
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return folder


def test_every_example_runs(
    ended: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ended)
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 9
    names: dict[str, Any] = {}
    for block in blocks:
        if ".plot(" in block and not PLOTS:
            with pytest.raises(idealmix.IdealmixError, match="pip install matplotlib"):
                exec(block, names)  # noqa: S102 (the project's own documentation)
        else:
            exec(block, names)  # noqa: S102
    said = capsys.readouterr().out
    assert "loss on \\ more of" in said
    assert "this file does not exist" in said
    assert isinstance(names["result"], idealmix.Result)
    assert (ended / "influence.png").exists() == PLOTS
    html = names["result"]._repr_html_()
    assert "mathematics" in html
    assert Nested(html).open == []


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, idealmix; idealmix.InfluenceMatrix, idealmix.Mixture, idealmix.Result, idealmix.run;"
        "print([m for m in ('torch', 'transformers', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert set(idealmix.__all__) <= set(dir(idealmix))
    with pytest.raises(AttributeError, match="no attribute 'surprise'"):
        idealmix.surprise  # type: ignore[attr-defined]  # noqa: B018


class Nested(HTMLParser):
    """Checks nesting; collects texts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_influence_as_a_table(tmp_path: Path) -> None:
    matrix = Run(tmp_path / "run", 31, domains=4, references=3).matrix
    frame = matrix.to_pandas()
    assert frame.attrs["units"] == matrix.units
    signs = matrix.signs()
    for q, reference in enumerate(matrix.references):
        for i, domain in enumerate(matrix.domains):
            row = frame.loc[(reference, domain)]
            assert row["alpha"] == matrix.alpha[q, i]
            assert row["se"] == matrix.se_population[q, i]
            assert (row["low"], row["high"]) == pytest.approx(matrix.interval(reference, domain), rel=1e-12)
            assert row["sign"] == signs[q][i]
    # a domain without unused rows is not measured on them
    exhausted = Run(tmp_path / "other", next(s for s in range(100) if _exhausted(tmp_path, s))).matrix
    unused = exhausted.to_pandas("unused")
    assert unused["alpha"].isna().sum() == len(exhausted.references)
    assert "sign" not in unused


def _exhausted(folder: Path, seed: int) -> bool:
    return bool(np.isnan(Run(folder / f"s{seed}", seed).matrix.alpha_unused).any())


def test_html_holds_figures_and_escapes_names(tmp_path: Path) -> None:
    matrix = Run(tmp_path / "run", 31).matrix
    parsed = Nested(matrix._repr_html_())
    assert parsed.open == []
    text = " ".join(parsed.texts)
    assert f"{matrix.alpha[1, 2]:+.3g} ± {matrix.se_population[1, 2]:.2g}" in text
    assert matrix.units in text
    bad = "<script>alert(1)</script>"
    mixture = idealmix.Mixture(
        3, {bad: Part(["a", "b", "a"], 30, 12, 2, "d"), "x": Part(["c"], 10, 4, 5, "d")}
    )
    parsed = Nested(mixture._repr_html_())
    assert parsed.open == []
    assert bad in parsed.texts
    assert "script" not in parsed.tags
    frame = mixture.to_pandas()
    assert frame.loc[bad].to_dict() == {
        "rows": 3, "pool_rows": 2, "passes": 1.5, "tokens": 30, "supervised_tokens": 12, "share": 0.75,
    }  # fmt: skip


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = Run(tmp_path / "run", 31).matrix
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(idealmix.IdealmixError, match="to_pandas needs pandas, which is not installed"):
        matrix.to_pandas()
    with pytest.raises(idealmix.IdealmixError, match="plot needs matplotlib, which is not installed"):
        matrix.plot()


@pytest.mark.skipif(not PLOTS, reason="matplotlib is not installed")
def test_the_picture_has_every_cell(tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matrix = Run(tmp_path / "run", 31, domains=4, references=3).matrix
    axes = matrix.plot()
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 12
    assert texts[6].startswith(f"{'▼▲≈'[['helps', 'hurts', 'cannot be told from zero'].index(matrix.signs()[1][2])]} {matrix.alpha[1, 2]:+.3g}")  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == list(matrix.domains)
    assert matrix.plot(axes) is axes


def test_a_finished_run_is_read(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", 5)
    result = idealmix.Result.read(run.folder)
    assert result.counts == run.start
    assert dict(result) == {key: result[key] for key in result}
    assert list(result.influence) == [0]
    assert np.array_equal(result.influence[0].alpha, run.matrix.alpha)
    assert "round 1 of 2" in repr(result)
    with pytest.raises(idealmix.InputError, match=r"mixture\.json"):
        result.mixture  # noqa: B018
    with pytest.raises(idealmix.InputError, match=r"result\.json"):
        idealmix.Result.read(tmp_path)
    write_json(run.folder / "result.json", {**sample(), "format": 7})
    with pytest.raises(idealmix.InputError, match="format 1"):
        idealmix.Result.read(run.folder)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"counts": {"typo": 4}}, "rows are given for 'typo', which is not a domain"),
        ({"domains": {"count": {"path": "x.jsonl", "rowz": 3}}}, "domains.count.rowz"),
    ],
)
def test_wrong_input_of_influence_is_told(tmp_path: Path, given: dict[str, Any], text: str) -> None:
    from rounds_helpers import save_model

    from idealmix.errors import InputError
    from idealmix.training.model import load_tokenizer

    asked: dict[str, Any] = {"domains": {"count": "x.jsonl"}, "references": {"count": "y.jsonl"}} | given
    tokenizer = load_tokenizer(str(save_model(tmp_path / "model")))
    with pytest.raises(InputError) as told:
        idealmix.influence(None, tokenizer, **asked)
    assert text in str(told.value)
