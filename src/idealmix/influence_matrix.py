"""The influence matrix: how each domain's volume moves the loss on each reference set, with errors.

Flows in: dot products of gradients by row, summed up by `influence_stage`. Flows out: alpha, standard errors, weighted
rows, ``influence.json``. Pure numpy.

    alpha[q, i] = - v_i (z_i[q] - c sum_j v_j z_j[q])        z_i[q] = gbar_q' R gbar_i

z_j in the sum is always that of the mixture's own (drawn) rows: they are what the other domains lose or gain when the
budget is held. z_i in front is that of the rows that the change would act on: unused pool rows, or drawn ones.

Errors are those of ratio estimators clustered by row (delta method): rows of one domain are one group, rows of one
reference set another; groups are independent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from idealmix.certainty import holm, p_value
from idealmix.errors import InputError

Array = NDArray[np.float64]
Rows = Literal["acting", "unused", "drawn"]

UNITS = (
    "nats per supervised token of the reference set, for doubling the domain; "
    "negative: more of the domain lowers the loss"
)
DOT_UNITS = (
    "gradient dot product: not nats, only a sign and an order; negative: more of the domain lowers the loss"
)


@dataclass(frozen=True)
class Dots:
    """What was measured on one kind of rows of all domains (drawn, or unused).

    Attributes:
        z: (Q, D), gbar_q' R gbar_i; NaN where there are no such rows.
        covariance: (D, Q, Q), of z[:, i] over training rows.
        reference_variance: (Q, D), of alpha[q, i] over reference rows, v_i included.
        rows: (D,), rows measured.
        fraction: (D,), share of all such rows that was measured.
    """

    z: Array
    covariance: Array
    reference_variance: Array
    rows: Array
    fraction: Array


@dataclass(frozen=True)
class WeightedRow:
    """A weighted sum of the matrix's rows: the slope of a joined loss. Arrays (D,); NaN where nothing was measured."""

    value: Array
    se: Array
    dof: Array


@dataclass(frozen=True)
class InfluenceMatrix:
    """See the module. Q reference sets, D domains.

    Attributes:
        v: (D,), the domains' weights in what was optimised.
        centred: c = 1 (held budget) or 0 (free volume).
        drawn, unused: measurements on the mixture's rows and on the pools' other rows.
        reference_rows: (Q,), rows of each gradient half.
        layers: name to (Q, D), parts of `alpha` that sum to it.
        losses: by reference set, nats per supervised token of the gradient half.
        facts: settings and counts, for ``influence.json``.
    """

    domains: tuple[str, ...]
    references: tuple[str, ...]
    v: Array
    centred: bool
    drawn: Dots
    unused: Dots
    reference_rows: Array
    layers: Mapping[str, Array]
    losses: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def units(self) -> str:
        """What a figure means, sign included."""
        return DOT_UNITS if self.facts.get("curvature") == "identity" else UNITS

    @property
    def alpha(self) -> Array:
        """(Q, D): from unused rows where there are any, else from drawn ones."""
        return np.where(np.isfinite(self.alpha_unused), self.alpha_unused, self.alpha_drawn)

    @property
    def alpha_drawn(self) -> Array:
        """(Q, D) on the mixture's own rows; NaN where a domain has none."""
        return self._alpha(self.drawn.z)

    @property
    def alpha_unused(self) -> Array:
        """(Q, D) on pool rows that were not drawn; NaN where the pool is exhausted."""
        return self._alpha(self.unused.z)

    @property
    def memorisation(self) -> Array:
        """(Q, D): unused minus drawn; what the model has learned of the drawn rows themselves."""
        return self.alpha_unused - self.alpha_drawn

    @property
    def se_population(self) -> Array:
        """(Q, D) of `alpha`: what other rows from the same sources would give."""
        return self._each_row("acting", subsample=False)[0]

    @property
    def se_subsample(self) -> Array:
        """(Q, D) of `alpha`: what measuring a sample of the training rows costs; 0 where all were measured."""
        return self._each_row("acting", subsample=True)[0]

    @property
    def dof(self) -> Array:
        """(Q, D): Satterthwaite's degrees of freedom of `se_population`."""
        return self._each_row("acting", subsample=False)[1]

    def weighted(self, weights: Mapping[str, float], rows: Rows = "acting") -> WeightedRow:
        """``sum_q weights[q] alpha[q, i]`` for every domain, with its population standard error.

        Args:
            weights: by reference set; those that are absent count 0. For an objective: dO/dL_q.
            rows: the kind of training rows; ``acting``: unused where there are any.

        Raises:
            InputError: a weight for a reference set that is not in the matrix.
        """
        unknown = [name for name in weights if name not in self.references]
        if unknown:
            raise InputError(f"no reference set is called {unknown[0]!r}", where="weights")
        w = np.array([float(weights.get(name, 0.0)) for name in self.references])
        alpha = {"acting": self.alpha, "unused": self.alpha_unused, "drawn": self.alpha_drawn}[rows]
        variance, dof = self._variance(w, rows, subsample=False)
        return WeightedRow(w @ alpha, np.sqrt(variance), dof)

    def interval(self, reference: str, domain: str, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of one entry of `alpha`, over other rows from the same sources."""
        q, i = self.references.index(reference), self.domains.index(domain)
        half = float(stdtrit(min(self.dof[q, i], 1e9), 0.5 + level / 2)) * self.se_population[q, i]
        return float(self.alpha[q, i] - half), float(self.alpha[q, i] + half)

    def signs(self) -> list[list[str]]:
        """(Q, D) in words, at a family-wise level of 5% over the matrix (Holm)."""
        alpha, se, dof = self.alpha, self.se_population, self.dof
        p = np.array([[p_value(*entry) for entry in zip(*row)] for row in zip(alpha, se, dof)])
        sure = np.atleast_2d(holm(p))
        return [
            [
                "cannot be told from zero" if not told else "helps" if value < 0 else "hurts"
                for value, told in zip(values, row)
            ]
            for values, row in zip(alpha, sure)
        ]

    def __str__(self) -> str:
        words, alpha, se = self.signs(), self.alpha, self.se_population
        head = ["reference \\ domain", *self.domains]
        body = [
            [
                name,
                *(f"{alpha[q, i]:+.4g} ± {se[q, i]:.2g} ({words[q][i]})" for i in range(len(self.domains))),
            ]
            for q, name in enumerate(self.references)
        ]
        widths = [max(len(row[k]) for row in [head, *body]) for k in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [head, *body]
        ]
        return "\n".join([*lines, f"Units: {self.units}. Standard errors: other rows from the same sources."])

    # --- errors ----------------------------------------------------------------------------------------------

    def _alpha(self, z: Array) -> Array:
        mix = np.nan_to_num(self.drawn.z) @ self.v
        return np.asarray(-self.v * (z - float(self.centred) * mix[:, None]), dtype=float)

    def _each_row(self, rows: Rows, *, subsample: bool) -> tuple[Array, Array]:
        parts = [self._variance(w, rows, subsample=subsample) for w in np.eye(len(self.references))]
        return np.sqrt(np.array([part[0] for part in parts])), np.array([part[1] for part in parts])

    def _variance(self, w: Array, rows: Rows, *, subsample: bool) -> tuple[Array, Array]:
        """(D,) variance of the weighted row and its degrees of freedom."""
        c, v = float(self.centred), self.v
        drawn, unused = (
            np.einsum("q,iqp,p->i", w, kind.covariance, w) * ((1 - kind.fraction) if subsample else 1.0)
            for kind in (self.drawn, self.unused)
        )
        out, freedom = np.full(len(v), np.nan), np.full(len(v), np.nan)
        has_unused = np.isfinite(self.unused.z).all(0)
        for i in range(len(v)):
            own_unused = rows == "unused" or (rows == "acting" and bool(has_unused[i]))
            kind = self.unused if own_unused else self.drawn
            if not np.isfinite(kind.z[:, i]).all():
                continue
            # the factor of each drawn group's error in alpha_i, then the unused group's
            factors = -c * v
            if not own_unused:
                factors[i] += 1.0
            parts = [
                (v[i] ** 2 * f**2 * s, n - 1)
                for f, s, n in zip(factors, drawn, self.drawn.rows)
                if f and np.isfinite(s)
            ]
            if own_unused:
                parts.append((v[i] ** 2 * unused[i], self.unused.rows[i] - 1))
            if not subsample:
                for q in range(len(w)):
                    parts.append((w[q] ** 2 * kind.reference_variance[q, i], self.reference_rows[q] - 1))
            total = math.fsum(part for part, _ in parts)
            spread = math.fsum(part**2 / max(n, 1) for part, n in parts)
            out[i], freedom[i] = total, (total**2 / spread if spread > 0 else 1e9)
        return out, freedom

    # --- files -----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The content of ``influence.json``; NaN is null. See docs/files.md."""
        return {
            "domains": list(self.domains),
            "references": list(self.references),
            "units": self.units,
            "alpha": _plain(self.alpha),
            "se_population": _plain(self.se_population),
            "se_subsample": _plain(self.se_subsample),
            "dof": _plain(self.dof),
            "alpha_drawn": _plain(self.alpha_drawn),
            "se_population_drawn": _plain(self._each_row("drawn", subsample=False)[0]),
            "alpha_unused": _plain(self.alpha_unused),
            "memorisation": _plain(self.memorisation),
            "centred": self.centred,
            "step_weights": dict(zip(self.domains, self.v.tolist())),
            **self.facts,
            "losses": dict(self.losses),
            "layers": [{"name": name, "alpha": _plain(part)} for name, part in self.layers.items()],
            "warnings": list(self.warnings),
            "measured": {
                "reference_rows": self.reference_rows.tolist(),
                **{
                    kind: {key: _plain(getattr(dots, key)) for key in Dots.__dataclass_fields__}
                    for kind, dots in (("drawn", self.drawn), ("unused", self.unused))
                },
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InfluenceMatrix:
        """The inverse of `to_json`.

        Raises:
            InputError: a key is missing.
        """
        try:
            measured = data["measured"]
            derived = {
                "domains", "references", "units", "alpha", "se_population", "se_subsample", "dof", "alpha_drawn",
                "se_population_drawn", "alpha_unused", "memorisation", "centred", "step_weights", "losses",
                "layers", "warnings", "measured",
            }  # fmt: skip
            return cls(
                domains=tuple(data["domains"]),
                references=tuple(data["references"]),
                v=np.array([data["step_weights"][name] for name in data["domains"]], dtype=float),
                centred=bool(data["centred"]),
                drawn=_dots(measured["drawn"]),
                unused=_dots(measured["unused"]),
                reference_rows=np.array(measured["reference_rows"], dtype=float),
                layers={layer["name"]: _array(layer["alpha"]) for layer in data["layers"]},
                losses=dict(data["losses"]),
                facts={key: value for key, value in data.items() if key not in derived},
                warnings=tuple(data["warnings"]),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"this is not an influence matrix: {error} is missing or wrong") from error

    def write(self, path: Path) -> None:
        """Write ``influence.json``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> InfluenceMatrix:
        """Read ``influence.json``.

        Raises:
            InputError: absent, not JSON, or not an influence matrix.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read an influence matrix: {error}", where=str(path)) from error


def _dots(data: Mapping[str, Any]) -> Dots:
    return Dots(**{key: _array(data[key]) for key in Dots.__dataclass_fields__})


def _plain(values: Array) -> Any:
    """Nested lists with null for what is not finite."""
    if values.ndim == 0:
        return float(values) if np.isfinite(values) else None
    return [_plain(part) for part in values]


def _array(values: Any) -> Array:
    return np.array(values, dtype=float)  # None becomes NaN
