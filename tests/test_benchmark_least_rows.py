"""The benchmark of least rows: what its correlation says, and one suite on its whole way."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_allocation_curves import NAMES, matrix

from benchmarks import least_rows, oracle_gap, retrainings


def test_correlation_is_of_a_rows_influence_with_what_its_source_is_made_of() -> None:
    start = dict(zip(NAMES, (10, 40, 20)))
    blends = dict(zip(NAMES, ({"q0": 0.1, "q1": 0.0}, {"q0": 0.5, "q1": 0.2}, {"q0": 0.3, "q1": 0.9})))
    parts = np.array([[each[q] for each in blends.values()] for q in ("q0", "q1")])
    rows = np.array(list(start.values()))
    bed = SimpleNamespace(start=lambda: start)
    found = least_rows.found_parts(matrix(parts * rows), bed, blends)  # type: ignore[arg-type]
    assert found == pytest.approx({"q0": 1.0, "q1": 1.0})
    turned = least_rows.found_parts(matrix((1 - parts) * rows), bed, blends)  # type: ignore[arg-type]
    assert turned == pytest.approx({"q0": -1.0, "q1": -1.0})


@pytest.mark.slow
def test_one_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (oracle_gap, retrainings):
        monkeypatch.setattr(module, "TRAINED_ROWS", 1500)
    monkeypatch.setattr(least_rows, "LEAST", (4, 32))
    few, more = lines = least_rows.measured(61, 8000, tmp_path)
    assert few["tokens_read"] < more["tokens_read"]
    assert few["joint"] == more["joint"]
    assert sum(more["counts"].values()) > 0
    assert all(-1 <= value <= 1 for value in more["correlation"].values())
    monkeypatch.delattr(least_rows, "train")  # nothing is trained for what is there
    again = least_rows.measured(61, 8000, tmp_path)
    assert json.dumps(again) == json.dumps(lines)  # taken from the files
