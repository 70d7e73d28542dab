"""Several processes in one run: who writes, who waits, and how a failure reaches everyone.

Flows in: the environment that ``accelerate launch`` or ``torchrun`` sets. Flows out: `Team`. With one process
every method is a plain call.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable
from typing import Any

from idealmix.errors import IdealmixError

# What the first process leaves in the processes' common store when it ends, and how long the second one looks for it:
# the first may be in the middle of a batch when the launcher tells all to end.
_ENDS, _PATIENCE = "idealmix/ends", datetime.timedelta(seconds=10)

# What gloo and NCCL say when the process at the other end is gone.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "remote process exited",
    "ncclRemoteError",
    "Timed out waiting",
)


class Team:
    """The processes of this run. Rank 0 owns the folder and the terminal; training and measuring are everybody's."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self._state: Any = None
        if self.size > 1:
            import torch
            from accelerate import PartialState

            # what rank 0 does alone (reading, scores, proxies) may take hours while the others wait
            self._state = PartialState(
                cpu=not torch.accelerator.is_available(), timeout=datetime.timedelta(days=2)
            )

    @property
    def leads(self) -> bool:
        """True on the process that writes and prints."""
        return self._state is None or self._state.is_main_process

    def lost_one(self, error: BaseException) -> bool:
        """Whether this failure says that another process of the run has died: its connection is gone."""
        chain: list[BaseException] = []
        each: BaseException | None = error
        while each is not None and each not in chain:
            chain.append(each)
            each = each.__cause__ or each.__context__
        texts = [str(one) for one in chain if isinstance(one, RuntimeError | IdealmixError)]
        return self.size > 1 and any(sign in text for text in texts for sign in _LOST)

    def speaks(self) -> bool:
        """Whether this process tells why the run ends: rank 0, or rank 1 where rank 0 is gone without a word.

        Asked once, when it ends.
        """
        if self._state is None:
            return True
        from torch.distributed.distributed_c10d import _get_default_store  # no public name leads to it

        if self.leads:
            with contextlib.suppress(Exception):  # the store may be gone with the process that had it
                _get_default_store().set(_ENDS, "1")
            return True
        if self._state.process_index > 1:
            return False
        try:
            _get_default_store().wait([_ENDS], _PATIENCE)
        except Exception:
            return True
        return False

    def lead(self, work: Callable[[], Any]) -> Any:
        """Run `work` on rank 0; every process gets its result, or its failure."""
        if self._state is None:
            return work()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = work()
            except IdealmixError as error:
                outcome[1] = error
            except BaseException as error:
                outcome[1] = IdealmixError(f"{type(error).__name__}: {error}", where="rank 0")
                broadcast_object_list(outcome)
                raise
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]
