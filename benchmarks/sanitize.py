"""compute-sanitizer over small calls of every CUDA operator: memcheck, then racecheck. A step of `make gpu-check`.

Ends with ABSENT where the tool is not installed, and with INCOMPLETE where it found nothing and has not looked at all
calls. Only the standard library is used here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CALLS = Path(__file__).resolve().parents[1] / "tests" / "gpu" / "sanitized_calls.py"
TOOLS = ("memcheck", "racecheck")
ABSENT = 77  # a step's status where what it needs is not installed
INCOMPLETE = 75  # where its time was over before its end; sanitized_calls.py ends with it, too


def find_sanitizer() -> str | None:
    """The program, from PATH or a toolkit."""
    toolkits = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places = [str(Path(home) / part) for home in toolkits if home for part in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def command(sanitizer: str, tool: str, until: float) -> list[str]:
    """Looks at fastsr's kernels only: PyTorch's would take most of the time. A finding is status 1."""
    options = ("--tool", tool, "--error-exitcode", "1", "--kernel-name", "kernel_substring=fastsr")
    return [sanitizer, *options, sys.executable, str(CALLS), "--until", f"{until:.1f}"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for all tools")
    budget = parser.parse_args(argv).budget
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print("compute-sanitizer is not installed: it comes with the CUDA toolkit; memory and races were not checked")
        return ABSENT
    # Memory of its own for every tensor, or reading past one would be reading the allocator's next.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    end, statuses = time.time() + budget, []
    for number, tool in enumerate(TOOLS):
        until = time.time() + (end - time.time()) / (len(TOOLS) - number)
        print(f"sanitize: {tool}", flush=True)
        done = subprocess.run(command(sanitizer, tool, until), env=environment, check=False)
        print(f"sanitize: {tool} ended with {done.returncode}", flush=True)
        statuses.append(done.returncode)
    return next((status for status in statuses if status not in (0, INCOMPLETE)), max(statuses))


if __name__ == "__main__":
    sys.exit(main())
