"""A stop between two optimiser steps: SIGINT and SIGTERM wait for the step's end and for a checkpoint.

Flows in: signals, while a training runs. Flows out: a checkpoint, then the signal to whoever had it before, so that
the run ends as it would have ended without a training.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from transformers import TrainerCallback

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Seconds that step and checkpoint may take together: schedulers kill 30 s after SIGTERM.
PATIENCE = 25.0


class StopBetweenSteps(TrainerCallback):
    """Inside the ``with`` block a signal is kept; at the step's end the trainer saves and stops.

    A second signal, or `PATIENCE` seconds, and the first goes through at once: the last checkpoint then counts. Every
    process of the training stops at the same step. Outside of the main thread, where Python has no signals, nothing is
    kept.
    """

    def __init__(self) -> None:
        self._kept: int | None = None
        self._before: dict[int, Any] = {}
        self._timer = (0.0, 0.0)  # whoever used the alarm gets it back

    def __enter__(self) -> StopBetweenSteps:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._keep) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if kind is None and self._kept is not None:
            signal.raise_signal(self._kept)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop if any process has been asked to."""
        asked = self._kept is not None
        if args.world_size > 1:  # the processes get their signals one after the other
            flag = torch.tensor([int(asked)], device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked:
            control.should_save = control.should_training_stop = True

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if self._kept is not None:
            self._out_of_patience(number, frame)
            return
        self._kept = number
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._out_of_patience)
        self._timer = signal.setitimer(signal.ITIMER_REAL, PATIENCE)

    def _out_of_patience(self, number: int, frame: FrameType | None) -> None:
        self.go_through()

    def go_through(self) -> None:
        """End here: the kept signal goes to whoever had it before; without one, another process was asked to stop.

        Raises:
            KeyboardInterrupt: unless the signal itself ended the process.
        """
        kept, self._kept = self._kept, None
        self._restore()
        if kept is not None:
            signal.raise_signal(kept)
        raise KeyboardInterrupt

    def _restore(self) -> None:
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, *self._timer)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
