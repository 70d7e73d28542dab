"""An influence matrix and a mixture as a pandas table, a matplotlib picture, and HTML for a notebook.

Flows in: an `InfluenceMatrix` or a `Mixture`. Flows out: what a notebook shows. pandas and matplotlib are only imported when
they are asked for. The methods of the two classes are the way in.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from idealmix.errors import IdealmixError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from idealmix.data.mixture import Mixture
    from idealmix.influence_matrix import InfluenceMatrix, Kind

MARKS = {"helps": "▼", "hurts": "▲", "cannot be told from zero": "≈", "not measured": "–"}
_TINTS = {"helps": "rgba(34, 113, 178, .28)", "hurts": "rgba(204, 102, 0, .28)"}
_ENDS = ("#8cbde3", "#f7f5f0", "#efb06d")
_CELL = 'style="text-align: right; padding: .25em .7em"'


def influence_frame(matrix: InfluenceMatrix, kind: Kind = "acting") -> pd.DataFrame:
    """One row for each reference set and domain; see `InfluenceMatrix.to_pandas`."""
    found = _library("pandas", "to_pandas")
    value, se, dof = matrix.entries(kind)
    half = np.where(np.isfinite(se), stdtrit(np.where(dof > 0, dof, 1.0), 0.975) * se, np.nan)
    index = found.MultiIndex.from_product([matrix.references, matrix.domains], names=["reference", "domain"])
    columns: dict[str, Any] = {
        "alpha": value, "se": se, "dof": dof, "low": value - half, "high": value + half,
    }  # fmt: skip
    frame = found.DataFrame({name: np.ravel(part) for name, part in columns.items()}, index=index)
    if kind == "acting":  # signs are claimed for these
        frame["sign"] = [sign for row in matrix.signs() for sign in row]
    frame.attrs["units"] = matrix.units
    return frame


def influence_plot(matrix: InfluenceMatrix, ax: Axes | None = None) -> Axes:
    """The heat map; see `InfluenceMatrix.plot`."""
    axes: Any = ax
    if axes is None:
        size = (2 + 1.25 * len(matrix.domains), 1.4 + 0.75 * len(matrix.references))
        axes = _library("matplotlib.pyplot", "plot").subplots(figsize=size, layout="constrained")[1]
    else:
        _library("matplotlib.pyplot", "plot")
    alpha, se, _ = matrix.entries()
    signs = matrix.signs()
    sure = np.isin(np.array(signs), ["helps", "hurts"])
    top = float(np.nanmax(np.abs(alpha), initial=0.0)) or 1.0
    colours = _library("matplotlib.colors", "plot").LinearSegmentedColormap.from_list("influence", _ENDS)
    axes.imshow(np.where(sure, alpha, 0.0), cmap=colours, vmin=-top, vmax=top, aspect="auto")
    axes.set_xticks(range(len(matrix.domains)), matrix.domains)
    axes.set_yticks(range(len(matrix.references)), matrix.references)
    axes.set_xlabel("more of the domain")
    axes.set_ylabel("loss on the reference set")
    for q, row in enumerate(signs):
        for i, sign in enumerate(row):
            text = MARKS[sign]
            if sign != "not measured":
                text = f"{MARKS[sign]} {alpha[q, i]:+.3g}\n± {se[q, i]:.2g}"
            axes.text(i, q, text, ha="center", va="center", fontsize=9)
    axes.set_title("Influence: ▼ helps, ▲ hurts, ≈ cannot be told from zero", fontsize=10)
    return axes  # type: ignore[no-any-return]


def influence_html(matrix: InfluenceMatrix) -> str:
    """A table for a notebook; names are escaped."""
    alpha, se, _ = matrix.entries()
    head = _row("th", "", "loss on \\ more of", [(name, "") for name in matrix.domains])
    body = []
    for q, (name, signs) in enumerate(zip(matrix.references, matrix.signs())):
        cells = []
        for i, sign in enumerate(signs):
            text = MARKS[sign]
            if sign != "not measured":
                text = f"{text} {alpha[q, i]:+.3g} ± {se[q, i]:.2g}"
            tint = f"; background: {_TINTS[sign]}" if sign in _TINTS else ""
            cells.append((text, f' title="{sign}" style="text-align: right; padding: .25em .7em{tint}"'))
        body.append(_row("td", ' scope="row"', name, cells))
    caption = f"▼ helps, ▲ hurts, ≈ cannot be told from zero. In {matrix.units}."
    return _table(head, body, caption)


def mixture_frame(mixture: Mixture) -> pd.DataFrame:
    """One row for each domain; see `Mixture.to_pandas`."""
    found = _library("pandas", "to_pandas")
    parts = mixture.parts.values()
    frame = found.DataFrame(
        {
            "rows": [part.rows for part in parts],
            "pool_rows": [part.pool_rows for part in parts],
            "passes": [part.rows / part.pool_rows for part in parts],
            "tokens": [part.tokens for part in parts],
            "supervised_tokens": [part.supervised_tokens for part in parts],
            "share": [part.tokens / mixture.tokens for part in parts],
        },
        index=found.Index(list(mixture.parts), name="domain"),
    )
    frame.attrs["seed"] = mixture.seed
    return frame


def mixture_html(mixture: Mixture) -> str:
    """A table for a notebook; names are escaped."""
    labels = ("rows", "tokens", "supervised tokens", "share of tokens", "passes over the pool")
    body = []
    for name, part in mixture.parts.items():
        texts = (
            f"{part.rows:,}", f"{part.tokens:,}", f"{part.supervised_tokens:,}",
            f"{part.tokens / mixture.tokens:.1%}", f"{part.rows / part.pool_rows:.2f}",
        )  # fmt: skip
        body.append(_row("td", ' scope="row"', name, [(text, f" {_CELL}") for text in texts]))
    caption = f"{mixture.rows:,} rows, {mixture.tokens:,} tokens, {mixture.supervised_tokens:,} supervised; seed {mixture.seed}."
    return _table(_row("th", "", "domain", [(label, "") for label in labels]), body, caption)


def _table(head: str, body: Sequence[str], caption: str) -> str:
    return f"<table><caption>{escape(caption)}</caption><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"


def _row(tag: str, scope: str, name: str, cells: Sequence[tuple[str, str]]) -> str:
    inner = "".join(f"<{tag}{how}>{escape(text)}</{tag}>" for text, how in cells)
    return f"<tr><th{scope}>{escape(name)}</th>{inner}</tr>"


def _library(name: str, method: str) -> Any:
    """An optional library.

    Raises:
        IdealmixError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise IdealmixError(
            f"{method} needs {package}, which is not installed", mend=f"pip install {package}"
        ) from None
