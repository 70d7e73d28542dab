"""The machine that a plan is for: memory, and how fast it multiplies matrices.

Flows in: a name from the table, or nothing: this machine, measured. Flows out: a `Machine`.
"""

from __future__ import annotations

import difflib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from idealmix.errors import InputError

GIB = 2**30
# An accelerator's context and library handles, not seen by torch's allocator; an assumption.
CONTEXT = 0.5 * GIB


@dataclass(frozen=True)
class Machine:
    """One device.

    Attributes:
        name: as shown.
        memory: usable bytes.
        bfloat16, float32: dense floating-point operations a second of a matrix product.
        accelerator: False: a CPU.
        measured: the rates were measured here, not taken from a data sheet.
        share: of that rate which a model's pass reaches. Accelerators: 0.4, what well-tuned trainings report (Chowdhery et
            al., arXiv 2204.02311, table 3: 21 to 46 %); CPUs: 0.5, an assumption that fits one run of SmolLM2-135M
            (docs/results/plan.md).
        disk: free bytes where the run is written; None: not known.
    """

    name: str
    memory: float
    bfloat16: float
    float32: float
    accelerator: bool = True
    measured: bool = False
    disk: float | None = None

    @property
    def share(self) -> float:
        """See the class."""
        return 0.4 if self.accelerator else 0.5

    def rate(self, dtype: str) -> float:
        """Operations a second of a large matrix product in `dtype`."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


def _card(name: str, gib: float, bfloat16: float, float32: float) -> Machine:
    return Machine(name, gib * GIB - CONTEXT, bfloat16 * 1e12, float32 * 1e12)


# Memory as the driver shows it (GiB), dense bfloat16 and plain float32 (no TF32: torch's default), in TFLOP/s.
MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        _card("h100", 79.6, 989.4, 66.9),  # NVIDIA H100 data sheet, SXM5 80 GB; half of "with sparsity"
        _card("h200", 140.4, 989.4, 66.9),  # NVIDIA H200 data sheet, SXM 141 GB; half of "with sparsity"
        _card("a100-80gb", 79.2, 312.0, 19.5),  # NVIDIA A100 data sheet, SXM 80 GB
        _card("a100-40gb", 39.4, 312.0, 19.5),  # NVIDIA A100 data sheet, 40 GB
        _card("l4", 22.5, 121.0, 30.3),  # NVIDIA L4 data sheet; half of "with sparsity"
        _card("rtx-4090", 23.6, 165.2, 82.6),  # NVIDIA Ada architecture white paper, table 2, FP32 accumulate
    )
}


def named(name: str) -> Machine:
    """A machine of the table.

    Raises:
        InputError: there is none of that name.
    """
    if name not in MACHINES:
        near = difflib.get_close_matches(name.lower(), MACHINES, n=1)
        raise InputError(
            f"no machine is called {name!r}",
            where="--machine",
            mend=f"did you mean {near[0]!r}?" if near else f"there are {', '.join(MACHINES)}",
        )
    return MACHINES[name]


def this_machine(dtype: str, folder: Path) -> Machine:
    """The machine that this process runs on; its rate in `dtype` is measured, in about two seconds.

    Args:
        dtype: ``float32`` or ``bfloat16``, what the run computes in.
        folder: where the run will be written, or a folder above it.
    """
    import shutil

    import torch

    rates = {kind: _measured_rate(kind) for kind in dict.fromkeys(("float32", dtype))}
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    wide, narrow = rates["float32"], rates.get("bfloat16", rates["float32"])
    disk = float(shutil.disk_usage(folder).free)
    if torch.cuda.is_available():
        memory = float(torch.cuda.mem_get_info()[0])
        return Machine(torch.cuda.get_device_name(), memory, narrow, wide, measured=True, disk=disk)
    threads = torch.get_num_threads()
    name = f"this machine ({threads} CPU thread{'s' if threads > 1 else ''})"
    return Machine(name, _free_memory(), narrow, wide, accelerator=False, measured=True, disk=disk)


def _measured_rate(dtype: str, seconds: float = 1.0) -> float:
    """Operations a second of a square matrix product: the median of repetitions, the first of which do not count."""
    import torch

    accelerated = torch.cuda.is_available()
    size = 8192 if accelerated else 768
    device = "cuda" if accelerated else "cpu"
    x = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        x @ x
        if accelerated:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    kept = sorted(times[2:])
    return 2 * size**3 / kept[len(kept) // 2]


def _free_memory() -> float:
    """What may still be used: free and reclaimable memory, or less where a control group allows less."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = float(page * os.sysconf("SC_AVPHYS_PAGES"))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        group = Path("/sys/fs/cgroup")
        limit = float((group / "memory.max").read_text(encoding="ascii"))  # "max" is no number: no limit
        return min(free, limit - float((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError, StopIteration):
        return free
