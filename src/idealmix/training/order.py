"""The order of consumption, decided before training: steps, micro-batches, rows.

Flows in: a mixture's drawn row ids, the pools' token counts, a seed. Flows out: a ``StepPlan`` that the
trainer follows to the letter, and the weights of the domains in what is then optimised. No torch.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from idealmix.errors import InputError

if TYPE_CHECKING:
    from idealmix.data.mixture import Mixture
    from idealmix.data.pools import Pool


#: Rows of a whole training: their order is held in memory.
_MOST_ROWS = 200_000_000


class Slot(NamedTuple):
    """One row of a micro-batch: ``domain`` indexes ``StepPlan.domains``, ``row`` that domain's pool.

    ``filler`` marks a row whose labels are all masked: it keeps a process busy that has no row left in a
    step, with an exactly zero loss and gradient.
    """

    domain: int
    row: int
    filler: bool = False


@dataclass(frozen=True)
class StepPlan:
    """Which rows each optimiser step sees, and how processes and micro-batches share them.

    Attributes:
        domains: names; slots index them.
        steps: per optimiser step an int array (rows, 2) of domain and pool row, longest row first.
        micro_batches: micro-batches of one process in every step (gradient accumulation).
        processes: how many processes share a step.
        step_weights: v_i, mean over steps of the domain's share of the step's supervised tokens.
        token_shares: T_i / T, the large-batch limit of ``step_weights``.
        rows, tokens, supervised_tokens: consumed over the whole training, repetitions and epochs counted.
    """

    domains: tuple[str, ...]
    steps: tuple[np.ndarray, ...]
    micro_batches: int
    processes: int
    step_weights: dict[str, float]
    token_shares: dict[str, float]
    rows: int
    tokens: int
    supervised_tokens: int

    def share_of(self, process: int) -> list[list[Slot]]:
        """The micro-batches of one process, in order, ``micro_batches`` for each step.

        Neighbouring micro-batches of a step hold rows of like length, one for each process, so padding is
        small and no process waits long for another.
        """
        share: list[list[Slot]] = []
        for step in self.steps:
            chunks = np.array_split(step, self.micro_batches * self.processes)
            for chunk in chunks[process :: self.processes]:
                slots = [Slot(int(domain), int(row)) for domain, row in chunk]
                share.append(slots or [Slot(int(step[-1][0]), int(step[-1][1]), filler=True)])
        return share

    def digest(self, pools: Mapping[str, Pool]) -> str:
        """sha256 of the row ids of each step; equal for any number of processes and micro-batches."""
        return consumption_digest(self.domains, self.steps, pools)


def plan_steps(
    mixture: Mixture,
    pools: Mapping[str, Pool],
    *,
    seed: int,
    epochs: float,
    micro_batch_rows: int,
    accumulation: int = 1,
    processes: int = 1,
    steps: int | None = None,
) -> StepPlan:
    """Deal a mixture's rows over optimiser steps.

    Each epoch is one permutation of the drawn rows (repetitions included); the epochs follow one another
    and are cut into steps whose sizes differ by at most one row, so that no step is a small remainder that
    counts as much as a full one. A row's place depends on the seed, the epoch and the row alone, so two
    mixtures that share rows consume them in the same relative order: their comparison is less noisy.

    Args:
        steps: fixed number of optimiser steps; null: as many as ``micro_batch_rows * accumulation *
            processes`` rows a step make. A step that then holds more rows than that is split into more
            micro-batches, never into larger ones.

    Raises:
        InputError: no rows, or more steps than rows.
    """
    rows = _epoch_rows(mixture, pools)
    if epochs * len(rows) > _MOST_ROWS:
        raise InputError(
            f"{epochs:g} epochs of {len(rows):,} rows are more rows than a training can plan ({_MOST_ROWS:,})",
            where="training.epochs",
            mend="lower it",
        )
    total = math.floor(epochs * len(rows) + 0.5)
    rows_per_step = micro_batch_rows * accumulation * processes
    count = steps if steps is not None else math.ceil(total / rows_per_step)
    if total < 1 or count < 1:
        raise InputError(
            f"the mixture has {len(rows)} rows, which over {epochs:g} epochs leaves nothing to train on",
            where="training",
            mend="give the domains more rows or raise training.epochs",
        )
    if count > total:
        raise InputError(
            f"the mixture's {total:,} rows are fewer than the {count:,} optimiser steps that every mixture of this budget has: its rows are "
            "longer than those of the mixture that the steps were counted on",
            where="training.per_device_train_batch_size",
            mend="let a step take more rows: raise it, or gradient_accumulation_steps",
        )
    domains = tuple(mixture.row_ids)
    order = np.concatenate(
        [_permuted(rows, domains, pools, seed, epoch) for epoch in range(math.ceil(total / len(rows)))]
    )[:total]
    tokens, supervised = _counts(order, domains, pools)
    dealt = [
        part[np.argsort(-tokens[part], kind="stable")] for part in np.array_split(np.arange(total), count)
    ]
    by_step = np.zeros((count, len(domains)))
    np.add.at(by_step, (np.repeat(np.arange(count), [*map(len, dealt)]), order[:, 0]), supervised)
    # every row has a supervised token (the pools drop others), so no step divides by zero
    weights = (by_step / by_step.sum(axis=1, keepdims=True)).mean(axis=0)
    shares = by_step.sum(axis=0) / by_step.sum()
    return StepPlan(
        domains=domains,
        steps=tuple(order[part] for part in dealt),
        micro_batches=math.ceil(max(map(len, dealt)) / (micro_batch_rows * processes)),
        processes=processes,
        step_weights=dict(zip(domains, weights.tolist())),
        token_shares=dict(zip(domains, shares.tolist())),
        rows=total,
        tokens=int(tokens.sum()),
        supervised_tokens=int(supervised.sum()),
    )


def consumption_digest(
    domains: tuple[str, ...], steps: tuple[np.ndarray, ...] | list[np.ndarray], pools: Mapping[str, Pool]
) -> str:
    """sha256 over steps of the sorted (domain, row id) pairs that each step consumed."""
    digest = hashlib.sha256()
    for step in steps:
        pairs = sorted(f"{domains[domain]}\t{pools[domains[domain]].ids[row]}" for domain, row in step)
        digest.update(("\n".join(pairs) + "\n\n").encode())
    return digest.hexdigest()


def _epoch_rows(mixture: Mixture, pools: Mapping[str, Pool]) -> np.ndarray:
    """(rows, 3) of domain, pool row and repetition: one epoch, in drawn order."""
    rows: list[tuple[int, int, int]] = []
    for index, (name, ids) in enumerate(mixture.row_ids.items()):
        if name not in pools:
            raise InputError(f"the mixture draws from {name!r}, which is not a domain", where="mixture")
        seen: Counter[str] = Counter()
        for row_id in ids:
            if row_id not in pools[name].index:
                raise InputError(
                    f"row {row_id!r} of the mixture is not in the pool of {name!r}",
                    where="mixture",
                    mend="the data changed since the mixture was drawn: draw it again",
                )
            rows.append((index, pools[name].index[row_id], seen[row_id]))
            seen[row_id] += 1
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _permuted(
    rows: np.ndarray, domains: tuple[str, ...], pools: Mapping[str, Pool], seed: int, epoch: int
) -> np.ndarray:
    """One epoch's permutation, (rows, 2): sorted by a keyed hash of the row."""

    def key(row: np.ndarray) -> bytes:
        name = domains[row[0]]
        text = f"{seed}\0{epoch}\0{name}\0{pools[name].ids[row[1]]}\0{row[2]}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    keys = [key(row) for row in rows]
    return rows[sorted(range(len(rows)), key=keys.__getitem__), :2]


def _counts(
    order: np.ndarray, domains: tuple[str, ...], pools: Mapping[str, Pool]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and supervised tokens of each row of ``order``."""
    tokens, supervised = np.zeros(len(order), dtype=np.int64), np.zeros(len(order), dtype=np.int64)
    for index, name in enumerate(domains):
        mine = order[:, 0] == index
        tokens[mine] = np.asarray(pools[name].tokens)[order[mine, 1]]
        supervised[mine] = np.asarray(pools[name].supervised)[order[mine, 1]]
    return tokens, supervised
