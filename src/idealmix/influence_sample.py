"""Which rows the influence is measured on.

Flows in: a mixture, pools, the fraction to measure. Flows out: a `Sample` of a domain's drawn rows, of its unused rows,
or of a whole reference set, in batches. Which rows are chosen follows from the seed, the set's name and the row ids.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idealmix.curvature import Batch, LazyBatches
from idealmix.data.seeding import seeded_order
from idealmix.errors import InputError

if TYPE_CHECKING:
    from idealmix.data.pools import Pool

# A domain's part of the curvature's rows is never smaller than this (or all that it has).
LEAST_OF_A_PART = 16
# A set of fewer rows gets a warning.
FEW_ROWS = 10


@dataclass(frozen=True)
class Sample:
    """A set's measured rows.

    Attributes:
        name: the set's, for messages.
        batches: a row's weight is its repetitions over `fraction`, so that a sampled mixture keeps its shares.
        rows: how many; may be 0.
        fraction: their share of all the set's rows.
        tokens: of these rows, each once: what one pass reads.
        prefix: stands with a slash before the row ids in the batches.
    """

    name: str
    batches: Sequence[Batch]
    rows: int
    fraction: float
    tokens: int
    prefix: str = ""


@dataclass(frozen=True)
class Sampler:
    """Takes samples.

    Attributes:
        fraction: of a domain's rows to measure.
        least: rows of a domain's drawn and of its unused ones that are measured whatever the fraction; all, if there are fewer.
        batch_tokens: padded tokens of a batch.
        seed: of the choice.
        all_unused: see `unused`.
    """

    fraction: float
    least: int
    batch_tokens: int
    seed: int
    all_unused: bool = False

    def drawn(self, name: str, pool: Pool, row_ids: Sequence[str], part: float = 1.0) -> Sample:
        """Of the distinct rows of the mixture, with their repetitions.

        Args:
            part: take only this share of the sample, the same rows whenever it is asked for.

        Raises:
            InputError: a row is not in the pool.
        """
        lost = [row for row in row_ids if row not in pool.index]
        if lost:
            raise InputError(
                f"row {lost[0]!r} of the mixture is not in the pool of {name!r}",
                where="mixture",
                mend="the data changed since the mixture was drawn",
            )
        rows = {pool.index[row]: times for row, times in Counter(row_ids).items()}
        size = self._size(rows, len(rows))
        if part < 1:
            size = min(size, max(math.ceil(part * size), LEAST_OF_A_PART))
        return self._chosen(name, "drawn rows", pool, rows, size)

    def unused(self, name: str, pool: Pool, row_ids: Sequence[str]) -> Sample:
        """Of the rows outside the mixture; as from no more of them than were drawn, however large the pool, but for `least`.

        As many serve as well, and the time of a measurement should follow the mixture's size (`all_unused` lifts this). A
        domain outside the mixture has no influence to measure: its sample is empty.
        """
        used = set(row_ids)
        rows = {i: 1 for i, row in enumerate(pool.ids) if used and row not in used}
        base = len(rows) if self.all_unused else min(len(rows), len(used))
        return self._chosen(name, "unused rows", pool, rows, self._size(rows, base))

    def whole(self, name: str, pool: Pool) -> Sample:
        """Every row, once."""
        return self._batched(name, name, pool, {i: 1 for i in range(len(pool))}, 1.0)

    def _size(self, rows: Mapping[int, int], base: int) -> int:
        return min(len(rows), max(math.ceil(self.fraction * base), self.least))

    def _chosen(self, domain: str, kind: str, pool: Pool, rows: Mapping[int, int], size: int) -> Sample:
        every = sorted(rows)
        order = seeded_order([pool.ids[i] for i in every], self.seed, "influence", domain)
        chosen = {every[k]: rows[every[k]] for k in sorted(order[:size])}
        fraction = size / len(rows) if rows else 1.0
        return self._batched(f"{domain}, {kind}", domain, pool, chosen, fraction)

    def _batched(
        self, name: str, prefix: str, pool: Pool, rows: Mapping[int, int], fraction: float
    ) -> Sample:
        places = list(rows)

        def read(at: int) -> tuple[list[int], list[int]]:
            row = pool.row(places[at])
            return row.input_ids, row.labels

        lengths = [int(pool.tokens[i]) for i in places]
        batches = LazyBatches(
            # sampled labels are keyed by these names, and two domains may use the same id
            [f"{prefix}/{pool.ids[i]}" for i in places],
            lengths,
            [rows[i] / fraction for i in places],
            read,
            self.batch_tokens,
        )
        return Sample(name, batches, len(places), fraction, sum(lengths), prefix)


def small_samples(samples: Sequence[Sample]) -> Iterator[str]:
    """Warnings about sets of few rows."""
    for sample in samples:
        if 0 < sample.rows < FEW_ROWS:
            rows = f"{sample.rows} row" if sample.rows == 1 else f"{sample.rows} rows"
            yield f"{sample.name}: {rows} measured, so the errors are uncertain themselves"
