"""What the machine is called, for the result files of the benchmarks."""

import contextlib
import platform
from pathlib import Path


def cpu_name():
    """The processor's name as Linux tells it; elsewhere what Python knows."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()
