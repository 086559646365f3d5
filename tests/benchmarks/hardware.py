"""What the machine is called and how fast its memory is, for the result files of the benchmarks."""

import contextlib
import platform
import time
from pathlib import Path


def cpu_name():
    """The processor's name as Linux tells it; elsewhere what Python knows."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def memory_gb_per_s(device="cpu"):
    """What the machine reads from memory: a sum over 400 MB, the best of ten."""
    import torch  # only here: some benchmarks measure programs that do without it

    x, best = torch.ones(100_000_000, device=device), float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        x.sum().item()
        best = min(best, time.perf_counter() - begin)
    return 0.4 / best
