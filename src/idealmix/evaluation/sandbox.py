"""Runs a program that a model wrote, and tells whether it came to its end.

Flows in: Python source, limits. Flows out: True or False; nothing else of it survives. A process of its own in an empty
scratch folder, without the user's environment: time, memory, no written byte, no other process, no network. Where the system
lets users make namespaces, it is alone in one of processes and has no network device, so that what it starts dies with it.

This keeps accidents from doing harm. It is no wall against an attacker: run models that you do not trust in a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SECONDS, MEMORY = 10, 2**30
"""Limits of one program: seconds (of processor and of wall time), bytes of address space."""

CHILD = Path(__file__).with_name("sandbox_child.py")
NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--")


def passes(program: str, seconds: int = SECONDS, memory: int = MEMORY) -> bool:
    """Whether a program ran to its end within its limits, raised nothing and did nothing that it must not.

    Leaving early, even with status 0, is not the end: the child says a word that the program never saw.
    """
    word = secrets.token_hex(16)
    read, write = os.pipe()
    task = {"program": program, "word": word, "report": write, "seconds": seconds, "memory": memory}
    with tempfile.TemporaryDirectory(prefix="idealmix-code-") as scratch, open(read, "rb") as verdict:
        try:
            process = subprocess.Popen(
                [*_namespaces(), sys.executable, "-I", "-S", "-B", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=scratch,
                env={"PATH": os.defpath, "HOME": scratch, "TMPDIR": scratch, "PYTHONHASHSEED": "0"},
                pass_fds=(write,),
                start_new_session=True,
            )
        finally:
            os.close(write)
        try:
            process.communicate(json.dumps(task).encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        except BrokenPipeError:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.set_blocking(verdict.fileno(), False)  # a process that outlived it may hold the other end
        return (verdict.read(len(word)) or b"").decode(errors="replace") == word


@cache
def _namespaces() -> tuple[str, ...]:
    """The command that makes them, where it is there and allowed."""
    if shutil.which(NAMESPACES[0]) is None:
        return ()
    done = subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False)
    return NAMESPACES if done.returncode == 0 else ()
