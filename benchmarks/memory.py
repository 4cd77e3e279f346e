"""Peak memory of one forward pass, each peer in a process of its own: python -m benchmarks.memory PEER NETWORK SIZE."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import network_case
from benchmarks.peers import FORWARD, PeerMissing


def _status(field: str) -> float:
    """A line of /proc/self/status in MB: VmRSS (now) or VmHWM (the highest so far)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure_here(peer: str, network: str, size: str) -> dict[str, Any]:
    torch.set_num_threads(2)
    try:
        small = FORWARD[peer](network_case(network, "64x64"))
        small()  # libraries, thread pools and compilers take their memory before the base line
        del small
        run = FORWARD[peer](network_case(network, size))
    except PeerMissing as missing:
        return {"reason": str(missing)}
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    run()
    return {"peak_mb": _status("VmHWM") - before}


def measure(peer: str, network: str, size: str) -> dict[str, Any]:
    """Peak memory in MB above what the process held with its weights loaded, or the reason why there is none."""
    command = [sys.executable, "-m", "benchmarks.memory", peer, network, size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"reason": (done.stderr.strip().splitlines() or ["failed"])[-1][:160]}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure_here(*sys.argv[1:4])))
