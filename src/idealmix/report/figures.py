"""Hand-made SVG for the report: bars, dot plots with error bars, intervals, and the strip of layers.

Flows in: plain numbers and names. Flows out: `Markup`; every name is escaped here. Colours come from classes that
page.css defines, for light and dark. Text stands only in the dot plots, which are drawn at phone size so that it
stays legible; everything else stretches to the width of its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from idealmix.report.words import decimals, number

_WIDTH, _HEIGHT = 320, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 14, 28


@dataclass(frozen=True)
class Point:
    """One dot: its label on the axis, value, half the 95% interval (None: unknown), and how it is drawn."""

    label: str
    value: float
    half: float | None
    kept: bool = True
    best: bool = False


def bar(now: float, before: float, top: float, label: str) -> Markup:
    """Two horizontal bars on one scale: the mixture (thick) and joint (thin); all three are fractions."""
    a, b = (min(x / top, 1) * 100 if top > 0 else 0.0 for x in (now, before))
    return Markup(
        '<svg class="bar" viewBox="0 0 100 16" preserveAspectRatio="none" role="img" aria-label="{}"><title>{}</title>'
        '<rect class="track" width="100" height="10"/><rect class="now" width="{}" height="10"/>'
        '<rect class="before" y="12" width="{}" height="4"/></svg>'
    ).format(label, label, _n(a), _n(b))


def dots(title: str, points: Sequence[Point], *, base: float | None = None, joined: bool) -> Markup:
    """Values with 95% intervals.

    Args:
        title: read aloud in place of the picture.
        points: from left to right; those not kept are hollow.
        base: the untrained model's value: a dotted line, or a note at the edge when it is far off the scale.
        joined: draw joint (the first point) as a dashed line across and connect the kept points.
    """
    points = [p for p in points if math.isfinite(p.value)]
    if not points:
        return Markup("")
    low = min(p.value - (p.half or 0) for p in points)
    high = max(p.value + (p.half or 0) for p in points)
    span = (high - low) or abs(high) * 0.1 or 1.0
    near = base is not None and low - span <= base <= high + span
    if near and base is not None:
        low, high = min(low, base), max(high, base)
    pad = 0.08 * ((high - low) or span)
    low, high = low - pad, high + pad

    def y(value: float) -> str:
        return _n(_TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM))

    room = _WIDTH - _LEFT - _RIGHT
    xs = [_LEFT + room * (k + 0.5) / len(points) for k in range(len(points))]
    right = _WIDTH - _RIGHT
    out = []
    ticks, places = _ticks(low, high)
    for t in ticks:
        out.append(f'<path class="grid" d="M{_LEFT} {y(t)}H{right}"/>')
        out.append(
            f'<text class="tick" x="{_LEFT - 7}" y="{y(t)}" dy=".33em" text-anchor="end">{number(t, places)}</text>'
        )
    if base is not None and near:
        out.append(f'<path class="base" d="M{_LEFT} {y(base)}H{right}"/>')
        out.append(f'<text class="note" x="{right}" y="{y(base)}" dy="-.4em" text-anchor="end">base</text>')
    elif base is not None:
        up = base > high
        out.append(
            f'<text class="note" x="{right}" y="{_TOP - 3 if up else _HEIGHT - _BOTTOM - 4}" text-anchor="end">'
            f"base {number(base, places)} {'↑' if up else '↓'} off the scale</text>"
        )
    if joined:
        out.append(f'<path class="joint" d="M{_LEFT} {y(points[0].value)}H{right}"/>')
        out.append(_lines(points, xs, y))
    every = math.ceil(len(points) / 8)
    for k, (x, p) in enumerate(zip(xs, points)):
        kind = ("kept" if p.kept else "left") + (" best" if p.best else "")
        if p.half:
            out.append(
                f'<path class="error {kind}" d="M{_n(x)} {y(p.value - p.half)}V{y(p.value + p.half)}"/>'
            )
        around = "" if p.half is None else f" ± {number(p.half, places + 1)}"
        out.append(
            f'<circle class="dot {kind}" cx="{_n(x)}" cy="{y(p.value)}" r="{5.5 if p.best else 4}" '
            f'data-tip="{escape(p.label)}: {number(p.value, places + 1)}{around}"/>'
        )
        if k % every == 0:
            out.append(
                f'<text class="tick{" strong" if p.best else ""}" x="{_n(x)}" y="{_HEIGHT - 9}" '
                f'text-anchor="middle">{escape(_short(p.label, room / len(points) * every))}</text>'
            )
    # every part above is made of numbers and escaped names
    parts = Markup("").join(map(Markup, out))
    return Markup('<svg class="dots" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, title, parts
    )


def whisker(value: float, half: float | None, reach: float, kind: str, label: str) -> Markup:
    """A difference with its interval beside zero, on a scale from -reach to reach; negative (better) is left."""

    def x(v: float) -> str:
        return _n(50 + 48 * max(-1.0, min(1.0, v / reach if reach else 0.0)))

    line = (
        Markup('<path class="reach {}" d="M{} 7H{}"/>').format(kind, x(value - half), x(value + half))
        if half
        else ""
    )
    return Markup(
        '<svg class="whisker" viewBox="0 0 100 14" preserveAspectRatio="none" role="img" aria-label="{}"><title>{}</title>'
        '<path class="zero" d="M50 0V14"/>{}<path class="mark {}" d="M{} 1.5V12.5"/></svg>'
    ).format(label, label, line, kind, x(value))


def strip(values: Sequence[float], top: float, label: str) -> Markup:
    """One row of coloured cells, first layer to last; one path a colour keeps it small."""
    paths: dict[str, str] = {}
    for k, v in enumerate(values):
        if shade := level(v, top):
            paths[shade] = paths.get(shade, "") + f"M{k} 0h1v1h-1z"
    cells = Markup("").join(
        Markup('<path class="{}" d="{}"/>').format(c, d) for c, d in sorted(paths.items())
    )
    return Markup(
        '<svg class="strip" viewBox="0 0 {} 1" preserveAspectRatio="none" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(max(len(values), 1), label, label, cells)


def level(value: float, top: float) -> str:
    """The colour class of a value: help-1 to help-4 below zero, hurt-1 to hurt-4 above, by size against `top`."""
    if not top or not value or not math.isfinite(value):
        return ""
    steps = min(4, max(1, math.ceil(4 * abs(value) / top)))
    return f"{'help' if value < 0 else 'hurt'}-{steps}"


def _lines(points: Sequence[Point], xs: Sequence[float], y: Callable[[float], str]) -> str:
    """The path of kept points, and a thin line from the best so far to each point that was not kept."""
    kept, out, last = [], [], 0
    for k, p in enumerate(points):
        at = f"{_n(xs[k])} {y(p.value)}"
        if p.kept:
            kept.append(at)
            last = k
        else:
            out.append(f'<path class="try" d="M{_n(xs[last])} {y(points[last].value)}L{at}"/>')
    return "".join(out) + f'<path class="way" d="M{"L".join(kept)}"/>'


def _ticks(low: float, high: float) -> tuple[list[float], int]:
    """Two to five round numbers inside the range, and their decimal places."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step)
    places = decimals(step, 1)
    if round(step, places) != step and abs(round(step, places) - step) > step * 1e-6:
        places += 1
    return [n * step for n in range(first, math.floor(high / step) + 1)], places


def _short(text: str, width: float) -> str:
    most = max(3, int(width / 6.5))
    return text if len(text) <= most else text[: most - 1] + "…"


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
