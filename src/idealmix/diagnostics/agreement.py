"""How well predicted slopes agree with slopes that retraining measured.

Flows in: test losses of trainings with less and with more of a domain, over several seeds, and predicted slopes. Flows out:
correlations, signs, calibration, the ceiling that the retrainings' own noise sets, each with a bootstrap interval. Pure
numpy and scipy.

A slope is d loss / d beta, nats per supervised token and doubling of a domain. Retraining gives it as a central difference,
``(L(1 + h) - L(1 - h)) / 2h``. Its error has two sources: the seed of the training (spread over seeds), and the test rows
(the delta method of a ratio, clustered by row, on the losses averaged over seeds; Cochran, Sampling Techniques, 3rd ed., 6.13).
The rows' part holds a share of the seeds' part too, so the sum errs on the safe side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from idealmix.certainty import LEVEL, p_value, satterthwaite

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Places = NDArray[np.int64]

KEYS = ("pearson", "pearson_off_diagonal", "spearman", "sign_agreement", "slope")
CLEAR = 2.0
"""Standard errors beyond which an entry counts for the rank correlation."""


def central_differences(low: Array, high: Array, counts: Array, width: float) -> tuple[Array, Array]:
    """Slopes by seed, and the variance of their mean that the test rows bring.

    Args:
        low, high: (S, .., N) loss sums of N test rows, nats, after training with less and with more; S seeds, paired.
        counts: (N,) supervised tokens of the rows.
        width: difference of beta between the two, 1 for 0.5x and 1.5x.

    Returns:
        (S, ..) slopes and (..) variances.
    """
    change, tokens, n = (high - low) / width, counts.sum(), len(counts)
    slopes = change.sum(-1) / tokens
    errors = (change.mean(0) - slopes.mean(0)[..., None] * counts) / tokens
    return slopes, n / (n - 1) * (errors**2).sum(-1)


@dataclass(frozen=True)
class Measured:
    """Slopes of one suite by retraining; Q test sets by D domains.

    Attributes:
        slopes: (S, Q, D) by seed, S >= 2.
        row_variance: (Q, D), of the mean, from the test rows.
        off_diagonal: (Q, D), the domain is not the one that the set asks for.
    """

    slopes: Array
    row_variance: Array
    off_diagonal: Mask

    @property
    def mean(self) -> Array:
        """(Q, D)."""
        return self.slopes.mean(0)

    @property
    def seed_variance(self) -> Array:
        """(Q, D), of the mean: one figure for each test set, pooled over domains.

        A few seeds tell a single entry's spread badly, and what a seed does to a set hardly depends on the domain that moves.
        """
        pooled = self.slopes.var(0, ddof=1).mean(1, keepdims=True) / len(self.slopes)
        return np.broadcast_to(pooled, self.mean.shape)

    @property
    def se(self) -> Array:
        """(Q, D), of the mean: seeds and test rows."""
        return np.sqrt(self.seed_variance + self.row_variance)

    @property
    def told(self) -> Mask:
        """(Q, D), entries that a t-test tells from zero at the 5% level, each by itself.

        Where all true slopes are zero, one in twenty is still told, with a sign of chance.
        """
        freedom = (len(self.slopes) - 1) * self.slopes.shape[2]
        entries = zip(self.mean.flat, self.se.flat, self.seed_variance.flat, self.row_variance.flat)
        p = [p_value(m, s, satterthwaite([a, b], [freedom, 1e9])) for m, s, a, b in entries]
        return np.array(p).reshape(self.mean.shape) <= LEVEL


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% bootstrap interval (percentiles); NaN where it is not defined."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, draws: Array) -> Interval:
        """From the figure and its bootstrap draws; undefined draws are left out."""
        known = draws[np.isfinite(draws)]
        low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
        return cls(float(value), float(low), float(high))

    @property
    def excludes_zero(self) -> bool:
        """The whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, float | None]:
        """Plain types; undefined is null."""
        pairs = (("value", self.value), ("low", self.low), ("high", self.high))
        return {name: x if np.isfinite(x) else None for name, x in pairs}


def pearson(x: Array, y: Array) -> float:
    """Correlation; NaN where one does not vary or there are fewer than two entries."""
    if len(x) < 2:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def least_pearson(x: Array, y: Array) -> float:
    """The smallest correlation with any one entry left out: no single large entry carries it."""
    n = len(x)
    if n < 3:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    # without entry k the sums of squares and products about the new mean shrink by n/(n-1) times the entry's own
    f = n / (n - 1)
    xx, yy, xy = x @ x - f * x**2, y @ y - f * y**2, x @ y - f * x * y
    scale = np.sqrt(np.maximum(xx, 0) * np.maximum(yy, 0))
    return float(np.min(xy / scale)) if (scale > 0).all() else float("nan")


def spearman(x: Array, y: Array) -> float:
    """Rank correlation, ties by their mean rank."""
    return pearson(rankdata(x), rankdata(y)) if len(x) >= 2 else float("nan")


def sign_agreement(x: Array, y: Array) -> float:
    """Share of entries with one sign; NaN without entries."""
    return float(np.mean(np.sign(x) == np.sign(y))) if len(x) else float("nan")


def slope(measured: Array, predicted: Array) -> float:
    """Least squares of measured on predicted through the origin: 1 is calibrated, below 1 over-predicts."""
    scale = float(predicted @ predicted)
    return float(measured @ predicted) / scale if scale > 0 else float("nan")


def agreement(
    measured: Array, predicted: Array, off_diagonal: Mask, clear: Mask, told: Mask
) -> dict[str, float]:
    """All measures of `KEYS` over E entries; arrays (E,).

    Args:
        clear: entries beyond `CLEAR` standard errors, for the rank correlation.
        told: entries told from zero, for the signs.
    """
    return {
        "pearson": least_pearson(measured, predicted),
        "pearson_off_diagonal": pearson(measured[off_diagonal], predicted[off_diagonal]),
        "spearman": spearman(measured[clear], predicted[clear]),
        "sign_agreement": sign_agreement(measured[told], predicted[told]),
        "slope": slope(measured, predicted),
    }


class Judge:
    """Predictions against several suites' measured slopes, all entries pooled.

    The bootstrap draws, within each suite and alike for all predictions, seeds (the retrainings' noise) and domains (which
    questions were asked: a domain's column is drawn as a whole, since its entries share trainings). The masks of clear and
    told entries stay those of all seeds.

    Args:
        measured: by suite.
        draws: bootstrap samples.
        seed: of the bootstrap.
    """

    def __init__(self, measured: Sequence[Measured], *, draws: int = 2000, seed: int = 0) -> None:
        self.measured = list(measured)
        self._masks = [(m.off_diagonal, np.abs(m.mean) > CLEAR * m.se, m.told) for m in self.measured]
        rng = np.random.default_rng(seed)
        self._samples = [[_resampled(rng, m) for m in self.measured] for _ in range(draws)]

    def counts(self) -> dict[str, int]:
        """How many entries there are, and how many each measure rests on."""
        off, clear, told = (sum(int(mask.sum()) for mask in masks) for masks in zip(*self._masks))
        return {
            "entries": sum(m.mean.size for m in self.measured),
            "off_diagonal": off,
            "clear": clear,
            "told": told,
        }

    def values(self, predicted: Sequence[Array]) -> dict[str, float]:
        """The measures on all seeds and domains; `predicted`: (Q, D) by suite."""
        return self._measures(
            predicted, [(np.arange(len(m.slopes)), np.arange(m.mean.shape[1])) for m in self.measured]
        )

    def draws(self, predicted: Sequence[Array]) -> dict[str, Array]:
        """The measures in every bootstrap sample, paired between calls."""
        found = [self._measures(predicted, sample) for sample in self._samples]
        return {key: np.array([each[key] for each in found]) for key in KEYS}

    def intervals(self, predicted: Sequence[Array]) -> dict[str, Interval]:
        """The measures with their intervals."""
        values, draws = self.values(predicted), self.draws(predicted)
        return {key: Interval.of(values[key], draws[key]) for key in KEYS}

    def advantage(self, ours: Sequence[Array], theirs: Sequence[Array]) -> dict[str, Interval]:
        """Differences of the measures, ours minus theirs, on the same bootstrap samples (no slope: it has no better)."""
        a, b, drawn_a, drawn_b = self.values(ours), self.values(theirs), self.draws(ours), self.draws(theirs)
        keys = [key for key in KEYS if key != "slope"]
        return {key: Interval.of(a[key] - b[key], drawn_a[key] - drawn_b[key]) for key in keys}

    def noise_ceiling(self) -> Interval:
        """Split-half correlation of the retrainings: mean over all halves of the seeds, the interval from drawn domains.

        The halves are as equal as the number of seeds allows. NaN with fewer than two seeds.
        """
        whole = [np.arange(m.mean.shape[1]) for m in self.measured]
        draws = [self._split_half([columns for _, columns in sample]) for sample in self._samples]
        return Interval.of(self._split_half(whole), np.array(draws))

    def _split_half(self, columns: Sequence[Places]) -> float:
        found = []
        for half in _halves(min(len(m.slopes) for m in self.measured)):
            first, second = [], []
            for m, chosen in zip(self.measured, columns):
                mine = np.isin(np.arange(len(m.slopes)), half)
                first.append(m.slopes[mine].mean(0)[:, chosen].ravel())
                second.append(m.slopes[~mine].mean(0)[:, chosen].ravel())
            found.append(pearson(np.concatenate(first), np.concatenate(second)))
        return float(np.mean(found)) if found else float("nan")

    def _measures(
        self, predicted: Sequence[Array], sample: Sequence[tuple[Places, Places]]
    ) -> dict[str, float]:
        parts = []
        for m, p, masks, (seeds, columns) in zip(self.measured, predicted, self._masks, sample):
            mean = m.slopes[seeds].mean(0)
            parts.append([each[:, columns].ravel() for each in (mean, p, *masks)])
        measured, told_by, off, clear, told = (np.concatenate(each) for each in zip(*parts))
        return agreement(measured, told_by, off, clear, told)


def _resampled(rng: np.random.Generator, measured: Measured) -> tuple[Places, Places]:
    """Seeds and domains, drawn with replacement."""
    seeds, domains = len(measured.slopes), measured.mean.shape[1]
    return rng.integers(seeds, size=(seeds,)), rng.integers(domains, size=(domains,))


def _halves(seeds: int) -> Iterator[tuple[int, ...]]:
    """The smaller half of every split in two."""
    if seeds >= 2:
        yield from combinations(range(seeds), seeds // 2)
