"""The influence matrix: how each domain's volume moves the loss on each reference set, with errors.

Flows in: `Moments` of the gradients, the domains' weights, c. Flows out: alpha, its errors, weighted rows, signs in
words, ``influence.json``. Pure numpy.

    alpha[q, i] = - v_i (gbar_q' R gbar_i - c sum_j v_j gbar_q' R gbar_j)

The sum is always over the mixture's own (drawn) rows: their objective is what was trained, and what the other domains
lose when the budget is held. gbar_i is that of the rows that a change would act on: for growth the rows that doubling the
domain would draw, unused pool rows as far as they go and then drawn rows again; for shrinking the drawn rows. Everything
is linear in the moments: alpha = mean K' with one row of K for each domain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from idealmix import views
from idealmix.certainty import holm, p_value
from idealmix.disk import disk_errors, write_json
from idealmix.errors import InputError
from idealmix.moments import Array, Estimate, Moments

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Kind = Literal["acting", "growth", "drawn", "unused", "memorisation"]
"""Of training rows. growth: those that doubling would draw (`InfluenceMatrix.fresh`), where some are unused. acting: growth
where it is known, else drawn. memorisation: unused minus drawn."""

_MEANS = "per doubling of the domain; negative = more of the domain lowers the loss"
UNITS = f"nats per supervised token of the reference set, {_MEANS}"
DOT_UNITS = f"dot product of gradients, not nats: a sign and an order, no size, {_MEANS}"


@dataclass(frozen=True)
class InfluenceMatrix:
    """R reference sets by D domains. Arrays of properties are (R, D); NaN: not measured (there are no such rows).

    Attributes:
        domains, references: names.
        step_weights: v_i by domain, its weight in what was optimised.
        centred: c = 1 (held budget) or c = 0 (free volume).
        moments: S = 2 D sets of training rows: every domain's drawn rows, then every domain's unused rows.
        layers: parts of `moments.mean`, (R, 2 D) by layer name; they sum to it.
        losses: of the gradient halves by reference set, nats per supervised token.
        facts: how it was measured (settings, counts): further keys of ``influence.json``.
        warnings: texts for the user. One is added where a domain has a single measured row: its own errors are
            unknown, and where it takes part in the others' (centred) a guess stands for it (`Moments.lent`).
    """

    domains: tuple[str, ...]
    references: tuple[str, ...]
    step_weights: Mapping[str, float]
    centred: bool
    moments: Moments
    layers: Mapping[str, Array]
    losses: Mapping[str, float]
    facts: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        said = [text for text in self._single_rows() if text not in self.warnings]
        object.__setattr__(self, "warnings", (*self.warnings, *said))

    @property
    def units(self) -> str:
        """What one unit of alpha means, and its sign."""
        return DOT_UNITS if self.facts.get("curvature") == "identity" else UNITS

    @property
    def alpha(self) -> Array:
        """From the rows that doubling a domain would draw."""
        return self.entries("acting").value

    @property
    def alpha_drawn(self) -> Array:
        """On the mixture's rows: what shrinking and repetition act on."""
        return self.entries("drawn").value

    @property
    def alpha_unused(self) -> Array:
        """On pool rows outside the mixture: what growth acts on while they last."""
        return self.entries("unused").value

    @property
    def fresh(self) -> Array:
        """(D,), the part of the rows that doubling a domain would draw that is unused: 1 while the pool has as many."""
        all_rows = self.moments.rows / np.where(self.moments.fraction > 0, self.moments.fraction, 1.0)
        drawn, unused = all_rows.reshape(2, len(self.domains))
        return np.minimum(unused / np.maximum(drawn, 1.0), 1.0)

    @property
    def memorisation(self) -> Array:
        """`alpha_unused` - `alpha_drawn`: what the model has learned of the drawn rows themselves."""
        return self.entries("memorisation").value

    @property
    def se_population(self) -> Array:
        """Of `alpha`: other training and reference rows from the same sources. Decisions use this one."""
        return self.entries("acting").se

    @property
    def se_subsample(self) -> Array:
        """Of `alpha`: a sample of the training rows instead of all of them."""
        return self.entries("acting", subsample=True).se

    @property
    def dof(self) -> Array:
        """Degrees of freedom of `se_population`."""
        return self.entries("acting").dof

    def entries(self, kind: Kind = "acting", *, subsample: bool = False) -> Estimate:
        """Every entry with its error, on one kind of rows."""
        K = self.coefficients(kind)
        each = [self._estimate(w, K, subsample=subsample) for w in np.eye(len(self.references))]
        return Estimate(*(np.array(column) for column in zip(*each)))

    def weighted(self, weights: Mapping[str, float], rows: Kind = "acting") -> Estimate:
        """``sum_q weights[q] alpha[q, i]``: a joined loss's slope by domain, (D,), with its population error.

        References share training rows, so the error is not that of independent entries.

        Args:
            weights: by reference set (dO/dL_q for an objective O); those left out count 0.

        Raises:
            InputError: a weight for a set that is not in the matrix.
        """
        return self._estimate(self._weights(weights), self.coefficients(rows))

    def change(self, beta: Mapping[str, float], weights: Mapping[str, float]) -> Estimate:
        """First-order change of a joined loss under relative changes of the volumes; arrays of shape ().

        Growth acts on the rows that doubling would draw, all else on drawn rows. Domains share reference rows and the
        mixture's gradient: the error knows it. A domain that was not measured adds NaN, unless its beta is 0.
        """
        b = np.array([float(beta.get(name, 0.0)) for name in self.domains])
        K = np.where(b[:, None] > 0, self.coefficients("acting"), self.coefficients("drawn"))
        K = np.where(b[:, None] == 0, 0.0, K)
        about = (b != 0)[None]
        return Estimate(*(part[0] for part in self._estimate(self._weights(weights), (b @ K)[None], about)))

    def covariance(self, kind: Kind = "acting") -> Array:
        """(D, R, R) of alpha[:, i] over the references: any weighting w has variance w' covariance w."""
        K, m = self.coefficients(kind), self.moments
        found = np.einsum("is,sqp->iqp", K**2, np.nan_to_num(m.lent))
        by_reference = np.einsum("is,qst,it->iq", K, m.reference, K)
        alone = np.eye(len(self.references)) * by_reference[:, :, None]
        own = np.tile(np.eye(len(self.domains), dtype=bool), 2)
        unknown = m.unknown(K, own)[:, None, None] | np.diag(m.reference_rows == 1)
        return np.where(unknown, np.nan, found + alone)

    def interval(self, q: str | int, i: str | int, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of an entry of `alpha`, by Student's t; reference and domain by name or place."""
        q = self.references.index(q) if isinstance(q, str) else q
        i = self.domains.index(i) if isinstance(i, str) else i
        value, se, dof = (float(part[q, i]) for part in self.entries())
        half = float(stdtrit(dof, 0.5 + level / 2)) * se
        return value - half, value + half

    def signs(self) -> list[list[str]]:
        """``helps`` (more of the domain lowers the loss), ``hurts``, ``cannot be told from zero``, ``not measured``.

        Holm's step-down over all measured entries: the chance that any sign is claimed where there is none is at
        most 5%.
        """
        alpha, se, dof = self.entries()
        measured = np.isfinite(alpha)
        sure = np.zeros(alpha.shape, dtype=bool)
        tests = zip(alpha[measured], se[measured], dof[measured])
        sure[measured] = holm(np.array([p_value(*entry) for entry in tests]))
        words = np.where(sure, np.where(alpha < 0, "helps", "hurts"), "cannot be told from zero")
        return np.where(measured, words, "not measured").tolist()

    def __str__(self) -> str:
        """The table in plain text."""
        alpha, se, _ = self.entries()
        table = [["loss on \\ more of", *self.domains]]
        for q, (name, words) in enumerate(zip(self.references, self.signs())):
            cells = [
                word if word == "not measured" else f"{a:+.3g} ± {s:.2g} {word}"
                for a, s, word in zip(alpha[q], se[q], words)
            ]
            table.append([name, *cells])
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths)).rstrip() for row in table]
        return "\n".join([*lines, f"in {self.units}"])

    def to_pandas(self, kind: Kind = "acting") -> pd.DataFrame:
        """One row for each reference set and domain (the index), sorted as in the matrix.

        Columns: ``alpha`` and ``se`` (population) in `units`, ``dof``, ``low`` and ``high`` (the 95% interval of each on
        its own), and for the acting rows ``sign`` as in `signs`.

        Raises:
            IdealmixError: pandas is not installed.
        """
        return views.influence_frame(self, kind)

    def plot(self, ax: Axes | None = None) -> Axes:
        """A heat map on matplotlib axes; colour only where a sign is claimed, figures in every cell.

        Args:
            ax: where to draw; None: a new figure.

        Raises:
            IdealmixError: matplotlib is not installed.
        """
        return views.influence_plot(self, ax)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return views.influence_html(self)

    # --- algebra ---------------------------------------------------------------------------------------------

    def coefficients(self, kind: Kind) -> Array:
        """(D, 2 D): K of the module's first lines, for one kind of rows; NaN rows where there are none."""
        if kind == "memorisation":
            return self.coefficients("unused") - self.coefficients("drawn")
        D, v = len(self.domains), np.array([self.step_weights[name] for name in self.domains])
        has = self.moments.rows.reshape(2, D) > 0
        unused = {"drawn": np.zeros(D), "unused": np.ones(D)}.get(kind, self.fresh)
        K = np.zeros((D, 2, D))
        K[:, 0] = float(self.centred) * np.outer(v, v) - np.diag(v * (1 - unused))
        K[:, 1] = -np.diag(v * unused)
        # a domain outside the mixture has no volume to change in proportion
        K[~(has[0] & (has[1] | (kind in ("acting", "drawn"))))] = np.nan
        return K.reshape(D, 2 * D)

    def _estimate(
        self, w: Array, K: Array, about: NDArray[np.bool_] | None = None, *, subsample: bool = False
    ) -> Estimate:
        """`Moments.combine`; `about`: (I, D), the domains that a row of K is about, None: each its own."""
        measured = np.asarray(np.isfinite(K).all(1))
        about = np.eye(len(self.domains), dtype=bool) if about is None else about
        own = np.tile(about, 2)  # drawn and unused rows
        found = self.moments.combine(w, np.where(measured[:, None], K, 0.0), own, subsample=subsample)
        return Estimate(*(np.where(measured, part, np.nan) for part in found))

    def _single_rows(self) -> list[str]:
        """What to say of domains of which a single row was measured."""
        said = []
        D = len(self.domains)
        for name, drawn, unused in zip(self.domains, self.moments.rows[:D], self.moments.rows[D:]):
            kinds = [kind for kind, rows in (("drawn", drawn), ("unused", unused)) if rows == 1]
            if kinds:
                text = f"{name}: a single {' and a single '.join(kinds)} row was measured, so the errors of its own influence are unknown"
                others = "; in the other domains' errors the largest scatter of any set's rows stands for it"
                said.append(text + (others if self.centred and drawn == 1 and D > 1 else ""))
        return said

    def _weights(self, weights: Mapping[str, float]) -> Array:
        unknown = sorted(set(weights) - set(self.references))
        if unknown:
            raise InputError(
                f"a weight is given for {unknown[0]!r}, which is not a reference set of the influence matrix",
                mend=f"the sets are {', '.join(self.references)}",
            )
        return np.array([float(weights.get(name, 0.0)) for name in self.references])

    # --- files -----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The content of ``influence.json``. Matrices are references by domains, null: not measured or not known.

        What can be computed from ``moments`` is there for readers; `from_json` computes it anew.
        """
        acting, drawn, unused = (self.entries(kind) for kind in ("acting", "drawn", "unused"))
        memorisation, K = self.entries("memorisation"), self.coefficients("acting")
        return {
            "domains": list(self.domains),
            "references": list(self.references),
            "units": self.units,
            "alpha": _plain(acting.value),
            "se_population": _plain(acting.se),
            "se_subsample": _plain(self.se_subsample),
            "dof": _plain(acting.dof),
            "signs": self.signs(),
            "covariance": _plain(self.covariance()),
            "alpha_drawn": _plain(drawn.value),
            "se_population_drawn": _plain(drawn.se),
            "alpha_unused": _plain(unused.value),
            "se_population_unused": _plain(unused.se),
            "memorisation": _plain(memorisation.value),
            "se_memorisation": _plain(memorisation.se),
            "centred": self.centred,
            "step_weights": dict(self.step_weights),
            **self.facts,
            "losses": dict(self.losses),
            "layers": [{"name": name, "alpha": _plain(part @ K.T)} for name, part in self.layers.items()],
            "warnings": list(self.warnings),
            "moments": {
                **self.moments.to_json(),
                "layers": {name: part.tolist() for name, part in self.layers.items()},
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InfluenceMatrix:
        """The inverse of `to_json`.

        Raises:
            InputError: it is something else.
        """
        try:
            found = cls(
                domains=tuple(data["domains"]),
                references=tuple(data["references"]),
                step_weights=dict(data["step_weights"]),
                centred=bool(data["centred"]),
                moments=Moments.from_json(data["moments"]),
                layers={name: np.array(part) for name, part in data["moments"]["layers"].items()},
                losses=dict(data["losses"]),
                facts={},
                warnings=tuple(data["warnings"]),
            )
            own = found.to_json()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not an influence matrix: {type(error).__name__} {error}") from error
        return replace(found, facts={key: value for key, value in data.items() if key not in own})

    def write(self, path: Path) -> None:
        """Write ``influence.json``, whole or not at all.

        Raises:
            IdealmixError: the disk is full, or it cannot be written there.
        """
        with disk_errors(path):
            write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> InfluenceMatrix:
        """Read what `write` wrote.

        Raises:
            InputError: missing, or something else.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"not an influence matrix: {error}", where=str(path)) from error


def _plain(values: Array) -> Any:
    """Nested lists; null for what is not finite."""
    return np.where(np.isfinite(values), values, np.array(None, dtype=object)).tolist()
