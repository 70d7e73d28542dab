"""Mixtures: which rows of which pools are trained, how often; drawn, written, read.

Flows in: pools, integer counts, a seed. Flows out: a `Mixture`, its ``mixture.json``, and its rows as files.

``mixture.json``::

    {"format": 1, "seed": 0, "rows": 120, "tokens": 3456, "supervised_tokens": 789,
     "domains": {"math": {"rows": 100, "pool_rows": 80, "tokens": 3000, "supervised_tokens": 700,
                          "pool_digest": sha256 of the pool, "row_ids": [ids in drawn order, repetitions included]}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from idealmix import views
from idealmix.data.pools import Pool
from idealmix.data.seeding import seeded_order
from idealmix.errors import IdealmixError, InputError

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = 1


@dataclass(frozen=True)
class Part:
    """One domain's share of a mixture, counted with repetitions."""

    row_ids: list[str]
    tokens: int
    supervised_tokens: int
    pool_rows: int
    pool_digest: str

    @property
    def rows(self) -> int:
        """Rows drawn."""
        return len(self.row_ids)


@dataclass(frozen=True)
class Mixture:
    """Rows drawn from pools, by domain; ``parts`` keeps the order of the counts it was drawn for."""

    seed: int
    parts: dict[str, Part]

    @property
    def row_ids(self) -> dict[str, list[str]]:
        """Row ids by domain, in drawn order, repetitions included."""
        return {name: part.row_ids for name, part in self.parts.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Rows by domain."""
        return {name: part.rows for name, part in self.parts.items()}

    @property
    def tokens_by_domain(self) -> dict[str, int]:
        """Tokens by domain."""
        return {name: part.tokens for name, part in self.parts.items()}

    @property
    def supervised_tokens_by_domain(self) -> dict[str, int]:
        """Supervised tokens by domain."""
        return {name: part.supervised_tokens for name, part in self.parts.items()}

    @property
    def rows(self) -> int:
        """Rows in all."""
        return sum(self.counts.values())

    @property
    def tokens(self) -> int:
        """Tokens of one pass."""
        return sum(self.tokens_by_domain.values())

    @property
    def supervised_tokens(self) -> int:
        """Supervised tokens of one pass."""
        return sum(self.supervised_tokens_by_domain.values())

    def to_pandas(self) -> pd.DataFrame:
        """One row for each domain: ``rows``, ``pool_rows``, ``passes``, ``tokens``, ``supervised_tokens``, ``share`` (of tokens).

        Raises:
            IdealmixError: pandas is not installed.
        """
        return views.mixture_frame(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return views.mixture_html(self)

    def write(self, path: str | Path) -> None:
        """Write ``mixture.json``."""
        domains = {
            name: {
                "rows": part.rows,
                "pool_rows": part.pool_rows,
                "tokens": part.tokens,
                "supervised_tokens": part.supervised_tokens,
                "pool_digest": part.pool_digest,
                "row_ids": part.row_ids,
            }
            for name, part in self.parts.items()
        }
        content = {
            "format": _FORMAT,
            "seed": self.seed,
            "rows": self.rows,
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
            "domains": domains,
        }
        write_json(Path(path), content)

    @classmethod
    def read(cls, path: str | Path, pools: Mapping[str, Pool] | None = None) -> Mixture:
        """Read a ``mixture.json``.

        Args:
            pools: what it was drawn from, to check it against; None: it is believed.

        Raises:
            InputError: not such a file; a domain without a pool; a pool that holds other rows than it did.
        """
        place = str(path)
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise InputError(f"its format is {content['format']!r}, and {_FORMAT} is read", where=place)
            seed, domains = int(content["seed"]), dict(content["domains"])
            drawn = {name: [str(row_id) for row_id in entry["row_ids"]] for name, entry in domains.items()}
            digests = {name: str(entry["pool_digest"]) for name, entry in domains.items()}
            told = {name: _told(entry, drawn[name]) for name, entry in domains.items()}
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=place) from error
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a mixture.json of idealmix: {error!r}", where=place) from error
        if pools is None:
            return cls(seed, told)
        parts = {}
        for name, ids in drawn.items():
            pool = _pool(pools, name, place)
            missing = sorted({row_id for row_id in ids if row_id not in pool.index})
            if missing or digests[name] != pool.digest:
                lost = (
                    f": {len(missing):,} of the drawn rows are gone, such as {missing[0]!r}"
                    if missing
                    else ""
                )
                raise InputError(
                    f"the pool of {name!r} is not the one that this mixture was drawn from{lost}",
                    where=place,
                    mend="restore the data, the tokenizer and training.max_length, or draw the mixture anew",
                )
            parts[name] = _part(pool, ids)
        return cls(seed, parts)


def draw(pools: Mapping[str, Pool], counts: Mapping[str, int], seed: int, *, max_repeats: int) -> Mixture:
    """Draw `counts` rows from the pools.

    A domain's draw is a prefix of its seeded permutation, begun anew when it is used up: n = q |D| + r rows are
    q whole repetitions and the first r of the permutation. So with one seed draws are nested: growing adds unused
    rows first, and shrinking takes out the rows that were added last, which is a random choice.

    Args:
        counts: rows by domain; 0 is allowed.
        max_repeats: the largest number of times that one row may be drawn.

    Raises:
        InputError: an unknown domain, a count that is negative or needs more repetitions, or nothing to draw.
    """
    for name, count in counts.items():
        available = len(_pool(pools, name, "counts"))
        if count < 0 or int(count) != count:
            raise InputError(f"{count} rows cannot be drawn", where=f"counts.{name}")
        if count > max_repeats * available:
            raise InputError(
                f"{count:,} rows are wanted of a pool of {available:,}, which repeats rows "
                f"{-(-int(count) // available)} times; at most {max_repeats} are allowed",
                where=f"domains.{name}",
                mend="lower the domain's count, give it more rows, or raise allocation.max_repeats",
            )
    if not sum(counts.values()):
        raise InputError("the mixture has no rows", where="counts", mend="give at least one domain some rows")
    parts = {}
    for name, count in counts.items():
        pool = pools[name]
        order = drawn_order(pool, seed, name)
        parts[name] = _part(pool, [pool.ids[k] for k in np.resize(order, int(count))])
    return Mixture(seed, parts)


def drawn_order(pool: Pool, seed: int, name: str) -> NDArray[np.int64]:
    """The permutation of a domain's pool whose prefixes are drawn."""
    return seeded_order(pool.ids, seed, "draw", name)


def write_json(path: Path, content: Any) -> None:
    """Write JSON; NaN is refused, since JSON has none."""
    try:
        with path.open("w", encoding="utf-8") as stream:  # in pieces: a mixture may have millions of ids
            json.dump(content, stream, indent=1, ensure_ascii=False, allow_nan=False)
            stream.write("\n")
    except OSError as error:
        raise IdealmixError(f"cannot be written: {error.strerror}", where=str(path)) from error


def _told(entry: Mapping[str, Any], ids: list[str]) -> Part:
    """A domain's part as its file tells it."""
    tokens, supervised, rows = (int(entry[key]) for key in ("tokens", "supervised_tokens", "pool_rows"))
    return Part(ids, tokens, supervised, rows, str(entry["pool_digest"]))


def _part(pool: Pool, ids: list[str]) -> Part:
    rows = np.array([pool.index[row_id] for row_id in ids], np.int64)
    return Part(ids, int(pool.tokens[rows].sum()), int(pool.supervised[rows].sum()), len(pool), pool.digest)


def _pool(pools: Mapping[str, Pool], name: str, where: str) -> Pool:
    if name not in pools:
        raise InputError(f"no pool of the name {name!r}", where=where, mend="there are: " + ", ".join(pools))
    return pools[name]
