"""Runs that end badly: a server that has imported everything forks one process for each `idealmix` command.

A forked command starts at once, so that killing one at fifty moments costs the runs and not the imports. It can be told
to be killed before, at or some time after its n-th write into the run folder, to meet a signal, or to see a clock that
jumps.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (minus the signal's number), seconds, output, writes, optimiser steps."""

    code: int
    seconds: float
    out: str
    err: str
    writes: int
    steps: int


@dataclass
class Server:
    """Forks commands; use as a context."""

    process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "survival_helpers.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TESTS,
        )  # fmt: skip
        assert self._answer() == {"ready": True}
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def run(self, *arguments: str, folder: Path, **fault: Any) -> Ended:
        """Run ``idealmix *arguments`` and count its writes below `folder`.

        Args:
            fault: ``kill_at`` (a write's number) and ``kill_when`` ("before", "after" or seconds after it),
                of the writes to paths that hold ``kill_in``;
                ``signal`` and ``signal_after`` seconds, or ``signal_at_step``; ``clock`` true: it jumps; ``limit``: bytes
                that a file may have; ``env``: more environment.
        """
        assert self.process.stdin is not None
        command = {"arguments": list(arguments), "folder": str(folder), **fault}
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return Ended(**self._answer())

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


# --- what runs in the server ---------------------------------------------------------------------------------


def serve() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import transformers.models.llama.modeling_llama  # noqa: F401
    import trl  # noqa: F401

    import idealmix.cli
    import idealmix.comparison.single
    import idealmix.report.page
    import idealmix.training.sft  # noqa: F401

    logs = Path(tempfile.mkdtemp(prefix="survival-"))  # nowhere near the disks that are full
    atexit.register(shutil.rmtree, logs)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        folder = Path(command["folder"])
        (logs / "figures").unlink(missing_ok=True)
        began = time.monotonic()
        child = os.fork()
        if not child:
            _child(command, folder, logs)
        status = _wait(child, command, began)
        seconds = time.monotonic() - began
        figures = (logs / "figures").read_text().split() if (logs / "figures").exists() else ["0", "0"]
        ended = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": seconds,
            "out": (logs / "out").read_text(),
            "err": (logs / "err").read_text(),
            "writes": int(figures[0]),
            "steps": int(figures[1]),
        }
        print(json.dumps(ended), file=answers, flush=True)


def _wait(child: int, command: dict[str, Any], began: float) -> int:
    planned = [(began + command["signal_after"], command["signal"])] if "signal_after" in command else []
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        if planned and time.monotonic() >= planned[0][0]:
            os.kill(child, planned.pop(0)[1])
        time.sleep(0.001)


def _child(command: dict[str, Any], folder: Path, logs: Path) -> None:
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ |= command.get("env", {})
    tempfile.tempdir = None  # asked for again
    figures = {"writes": 0, "steps": 0}
    _count_steps(figures, command)
    _count_writes(figures, command, folder)
    if command.get("clock"):
        _jump()
    if "limit" in command:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (command["limit"], command["limit"]))
    from idealmix.cli import main

    sys.argv = ["idealmix", *command["arguments"]]
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if "limit" not in command:
        (logs / "figures").write_text(f"{figures['writes']} {figures['steps']}")
    os._exit(code)


def _count_steps(figures: dict[str, int], command: dict[str, Any]) -> None:
    from idealmix.training.planned import PlannedTrainer

    original = PlannedTrainer.training_step

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        figures["steps"] += 1
        if figures["steps"] == command.get("signal_at_step"):
            os.kill(os.getpid(), command["signal"])
        return original(self, *arguments, **named)

    PlannedTrainer.training_step = counted  # type: ignore[method-assign]


def _count_writes(figures: dict[str, int], command: dict[str, Any], folder: Path) -> None:
    """Count what changes the run folder, and end there if so told."""
    import builtins
    import io

    root, at, when = str(folder), command.get("kill_at"), command.get("kill_when")
    part = command.get("kill_in", "")

    def wrap(module: Any, name: str, place_of: Any) -> None:
        original = getattr(module, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            place = place_of(*arguments, **named)
            if not place.startswith(root + os.sep) or part not in place:
                return original(*arguments, **named)
            figures["writes"] += 1
            mine = figures["writes"] == at
            if mine and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return original(*arguments, **named)
            finally:  # also behind a write that failed, such as the removal of what is not there
                if mine and when == "after":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif mine:
                    _kill_later(float(when))

        setattr(module, name, wrapped)

    def changed(path: Any, *_: Any, **__: Any) -> str:
        return "" if isinstance(path, int) else os.path.abspath(os.fspath(path))

    def opened(path: Any, mode: str = "r", *_: Any, **__: Any) -> str:
        return changed(path) if any(letter in mode for letter in "wax+") else ""

    def synced(handle: int) -> str:
        return os.readlink(f"/proc/self/fd/{handle}")

    for name in ("replace", "rename", "mkdir", "unlink", "rmdir"):
        wrap(os, name, changed)
    wrap(os, "fsync", synced)
    wrap(builtins, "open", opened)
    io.open = builtins.open  # type: ignore[misc]


def _kill_later(seconds: float) -> None:
    """SIGKILL to this process from another one, whatever this one is doing then."""
    doomed = os.getpid()
    if not os.fork():
        os.closerange(3, 1024)  # the run folder's lock would outlive the run
        time.sleep(seconds)
        if os.getppid() == doomed:
            os.kill(doomed, signal.SIGKILL)
        os._exit(0)


def _jump() -> None:
    """Every look at the wall clock finds it days before or after the last one."""
    original, looks = time.time, [0]

    def jumping() -> float:
        looks[0] += 1
        return original() + (-1) ** looks[0] * 86_400.0 * (looks[0] % 7)

    time.time = jumping


if __name__ == "__main__":
    serve()
