"""The other side of `sandbox`: limits itself, runs one program, and says whether it came to its end.

Flows in: JSON on standard input (the program, a word, limits). Flows out: the word on the descriptor that is named, if nothing
failed. A script of its own, with the standard library alone: ``python -I -S -B sandbox_child.py``.

What the program must not do ends the process at once, caught or not: starting processes, opening files to write, connecting.
Where the kernel has Landlock (Linux 5.13), it refuses writes and TCP below Python too.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = (
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "subprocess.", "pty.",
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "os.kill", "os.killpg", "os.setxattr", "os.removexattr", "shutil.", "tempfile.", "socket.connect",
    "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "signal.pthread_kill", "resource.setrlimit",
    "resource.prlimit",
)  # fmt: skip
# Landlock's numbers (linux/landlock.h): all file system accesses but executing and reading, and TCP
CREATE, RESTRICT, NO_NEW_PRIVILEGES = 444, 446, 38
FILE_WRITES = {1: 0x1FF2, 2: 0x3FF2, 3: 0x7FF2}
TCP = 0x3


def limit(seconds: int, memory: int) -> None:
    """Processor time, address space, no bytes in any file, few descriptors, no core."""
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it: a write would only raise


def landlock() -> None:
    """Refuse writes and TCP in the kernel, where it can."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    rules = (ctypes.c_uint64 * 2)(FILE_WRITES[min(version, 3)], TCP if version >= 4 else 0)
    size = ctypes.c_size_t(16 if version >= 4 else 8)
    ruleset = libc.syscall(CREATE, ctypes.byref(rules), size, 0)
    if ruleset < 0 or libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(RESTRICT, ruleset, 0):
        raise OSError(ctypes.get_errno() or errno.EPERM, "Landlock refused")
    os.close(ruleset)


def watch(event: str, arguments: tuple) -> None:
    """An audit hook, which a program cannot take off again."""
    if event == "open":
        flags = arguments[2] if len(arguments) > 2 else 0
        if isinstance(flags, int) and flags & WRITES:
            os._exit(3)
    elif event.startswith(FORBIDDEN):
        os._exit(3)


def main() -> None:
    """Run what standard input says."""
    task = json.loads(sys.stdin.buffer.read())
    sys.stdin.close()
    program, word, report = compile(task["program"], "answer", "exec"), task["word"].encode(), task["report"]
    del task["word"]
    landlock()
    limit(task["seconds"], task["memory"])
    sys.addaudithook(watch)
    exec(program, {"__name__": "answer"})  # noqa: S102 (what it is for)
    os.write(report, word)
    os._exit(0)


if __name__ == "__main__":
    main()
