"""The benchmark of the curves' shapes: what it fits, and which mixtures it trains."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import curve_shapes


def test_a_shape_that_is_known_is_found() -> None:
    x = np.array([0.125, 0.25, 0.5, 1, 2, 4, 8])
    found = curve_shapes.shape(x, 0.3 * np.log1p(12 * x))
    assert (found["p"], found["k"]) == pytest.approx((0.3, 12), rel=1e-4)
    assert found["fall"] == pytest.approx(0.3 * np.log(13))
    assert found["rms"] < 1e-6
    # the elasticity is the slope of log fall by log volume
    rise = np.log(np.log1p(12 * 1.001) / np.log1p(12 * 0.999)) / np.log(1.001 / 0.999)
    assert found["elasticity"] == pytest.approx(rise, rel=1e-4)


def test_every_domain_is_multiplied_as_far_as_the_budget_goes() -> None:
    asked = []

    def trained(counts: dict[str, int], influence: bool) -> tuple[dict, None]:
        asked.append(dict(counts))
        falls = {name: 2.0 * (1 + 5 * counts[name] / 100) ** -0.4 for name in counts}
        return {"counts": dict(counts), "deciding": falls}, None

    def changed(domain: str, factor: float, hold: bool) -> dict[str, int]:
        rest = round(100 + (100 - 100 * factor) / 2)
        return {name: round(100 * factor) if name == domain else rest for name in ("a", "b", "c")}

    bed = SimpleNamespace(row_tokens=dict.fromkeys("abc", 1.0), budget=300, changed=changed)
    lab = SimpleNamespace(
        start=dict.fromkeys("abc", 100), bed=bed, base=dict.fromkeys("abc", 2.0), trained=trained
    )
    found = curve_shapes.shapes(lab)  # type: ignore[arg-type]
    assert {one["a"] for one in asked} >= {12, 25, 50, 100, 200}
    assert max(max(one.values()) for one in asked) <= 0.9 * 300
    assert found["b"]["k"] == pytest.approx(5, rel=0.01)
