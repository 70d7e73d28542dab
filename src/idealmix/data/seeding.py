"""Orders that depend on a seed and on row ids alone, the same on every machine and in every version.

Flows in: row ids, a key. Flows out: permutations. Python's ``hash`` and library generators may change; SHA-256
does not. Because a row's place follows from its own id, the order of a file's lines does not matter, and a row
that is added to a pool leaves the others in their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def seeded_order(ids: Sequence[str], *key: str | int) -> NDArray[np.int64]:
    """A permutation of ``range(len(ids))``, uniform over seeds.

    Args:
        ids: unique row ids.
        key: what the order is for (seed, purpose, domain): other keys give independent orders.
    """
    prefix = hashlib.sha256("\0".join(map(str, key)).encode() + b"\0")
    ranks = np.empty((len(ids), 2), np.uint64)
    for number, row_id in enumerate(ids):
        ranked = prefix.copy()
        ranked.update(row_id.encode())
        ranks[number] = np.frombuffer(ranked.digest()[:16], ">u8")
    return np.lexsort((ranks[:, 1], ranks[:, 0]))
