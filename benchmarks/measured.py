"""Wall time and peak memory of one piece of work, alone in a process of its own.

Flows in: a module's function and JSON arguments. Flows out: what it returned, with ``peak_mb`` over what the process
held before the work began. A fresh process for each: memory that an allocator keeps would otherwise be counted twice.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def alone(function: str, **arguments: Any) -> dict[str, Any]:
    """Run ``module:function(**arguments)`` in a new process; it returns a dict."""
    command = [sys.executable, "-m", "benchmarks.measured", function, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{function} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def told(parser: argparse.ArgumentParser, compare: Callable[..., dict[str, Any]]) -> None:
    """Run ``compare`` with the command line's options; the last line is one JSON object, the only one with ``--json``."""
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    options = vars(parser.parse_args())
    quiet = options.pop("json")
    found = compare(**options)
    if not quiet:
        for key, value in found.items():
            print(f"{key}: {value}")
    print(json.dumps(found))


class Clock:
    """From its making on, seconds of the wall and of the processor; the second hardly feels what else a machine does."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def wall(self) -> float:
        """Seconds that went by."""
        return time.perf_counter() - self._wall

    @property
    def cpu(self) -> float:
        """Seconds that this process computed, all its threads together."""
        return time.process_time() - self._cpu


class Peak:
    """Peak resident memory from a moment on, in MB; ``reset`` is that moment."""

    def reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _status("VmRSS")

    def value(self) -> float:
        return _status("VmHWM") - self.before


def _status(key: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", text)[1]) / 1024


def main() -> None:
    module, name = sys.argv[1].split(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
