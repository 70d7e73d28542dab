"""The leak check: no reference or test row may stand in a training pool, nor a reference row in a test set.

Flows in: pools. Flows out: nothing, or an error that says how many rows, which, and how to mend it; warnings of domains that are
alike. Rows are the same when their folded prompts are (all before the last assistant turn; case and white space do not count).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from idealmix.errors import InputError

if TYPE_CHECKING:
    from idealmix.data.pools import Pool

_SHOWN = 5
NEARLY_ALL = 0.9


def check_leaks(
    domains: Mapping[str, Pool], references: Mapping[str, Pool], tests: Mapping[str, Pool]
) -> None:
    """Compare every reference and test set with every domain, and every reference set with every test set.

    Raises:
        InputError: an overlap; all overlaps are named at once.
    """
    named = {
        kind: [(f"{kind}.{name}", pool) for name, pool in pools.items()]
        for kind, pools in (("domains", domains), ("references", references), ("tests", tests))
    }
    keys = {label: np.unique(pool.prompt_keys) for pools in named.values() for label, pool in pools}
    pairs = [
        *product(named["references"] + named["tests"], named["domains"]),
        *product(named["references"], named["tests"]),
    ]
    found = [
        _overlap(label, pool, other_label, other, shared)
        for (label, pool), (other_label, other) in pairs
        if (shared := np.intersect1d(keys[label], keys[other_label], assume_unique=True)).size
    ]
    if found:
        raise InputError(
            "sets overlap (the same prompt, case and white space apart), so figures on them would be worth nothing:\n"
            + "\n".join(f"    {line}" for line in found),
            mend="take these rows out of one of the two sets of each line; where both keys name the same file, give one of them another",
        )


def _overlap(label: str, pool: Pool, other_label: str, other: Pool, shared: NDArray[np.bytes_]) -> str:
    mine, theirs = _rows(pool, shared), _rows(other, shared)
    both = _listed(mine) if mine == theirs else f"{_listed(mine)} = {_listed(theirs)}"
    return f"{len(mine):,} of {len(pool):,} rows of {label} stand in {other_label} ({len(theirs):,} rows there): {both}"


def alike(domains: Mapping[str, Pool]) -> list[tuple[str, str]]:
    """Domains whose prompts nearly all stand in another one too, each with a sentence: what each of the two does cannot be told apart."""
    keys, found = {name: np.unique(pool.prompt_keys) for name, pool in domains.items()}, []
    for one, other in combinations(sorted(keys, key=lambda name: len(keys[name])), 2):
        shared = np.intersect1d(keys[one], keys[other], assume_unique=True).size
        if shared >= NEARLY_ALL * len(keys[one]):
            text = f"{shared:,} of its {len(keys[one]):,} prompts stand in domains.{other} too; if the answers do, influence cannot tell the two apart"
            found.append((one, text))
    return found


def _rows(pool: Pool, shared: NDArray[np.bytes_]) -> list[str]:
    return [pool.ids[number] for number in np.flatnonzero(np.isin(pool.prompt_keys, shared))]


def _listed(ids: list[str]) -> str:
    more = f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more
