"""Runs the benchmarks on the CPU: python -m benchmarks.run [--only ...] [--json FILE].

make bench-cpu                                   everything, about 15 minutes on 2 cores
python -m benchmarks.run --only ops --sizes 256x256 --seconds 2
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import fastsr
from benchmarks import cases, memory
from benchmarks.cases import Case
from benchmarks.measure import FASTSR, best_peer, compare, ratio
from benchmarks.peers import FORWARD, TRAINING, PeerMissing, Run, torch_forward, torch_training

GROUPS = ("ops", "models", "train", "memory")


def environment() -> dict[str, Any]:
    """What the figures belong to."""
    model = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    versions = {}
    for package in ("onnxruntime", "openvino"):
        try:
            versions[package] = __import__(package).__version__
        except ImportError:
            versions[package] = None
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or None,
        "device": model[0] if model else platform.processor(),
        "threads": torch.get_num_threads(),
        "cpu_isa": fastsr.info()["cpu_isa"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def ceilings() -> dict[str, float | None]:
    """What this machine can do on the threads in use, the best of some tries: `fma_gflops`, multiply-adds in registers
    with the instruction set of the kernels; `sgemm_gflops`, PyTorch's product of 1536 x 1536 matrices; `copy_gbs`,
    bytes read and written per second by copying 128 MB."""
    a, b = torch.rand(1536, 1536), torch.rand(32 << 20)
    to = torch.empty_like(b)
    rates = {
        "sgemm_gflops": _best_rate(lambda: (torch.mm(a, a), 2 * 1536**3)[1]),
        "copy_gbs": _best_rate(lambda: (to.copy_(b), 2 * b.nbytes)[1]),
    }
    if fastsr.info()["cpu_isa"] is None:
        return {"fma_gflops": None, **rates}
    return {"fma_gflops": _best_rate(lambda: torch.ops.fastsr._cpu_fma(2_000_000)), **rates}


def _best_rate(run: Callable[[], int]) -> float:
    """The highest rate of 8 runs, in units of 1e9 of what `run` returns per second."""
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        amount = run()
        best = max(best, amount / (time.perf_counter() - start) / 1e9)
    return best


def jobs(groups: list[str], sizes: list[str], names: list[str]) -> list[tuple[str, str, Case | None]]:
    """(group, name, case) of everything asked for."""

    def wanted(name: str) -> bool:
        return not names or name in names

    chosen: list[tuple[str, str, Case | None]] = []
    for group in groups:
        if group == "ops":
            chosen += [(group, n, cases.operator_case(n, s)) for s in sizes for n in cases.OPERATORS if wanted(n)]
        elif group == "models":
            chosen += [(group, n, cases.network_case(n, s)) for s in sizes for n in cases.NETWORKS if wanted(n)]
        elif group == "train":
            chosen += [(group, n, cases.training_case(n)) for n in ("alkdnet", "mlrn") if wanted(n)]
        else:
            chosen += [(group, n, None) for n in ("alkdnet", "mlrn") if wanted(n)]
    return chosen


def _not_asked_for(case: Case) -> Run:
    raise PeerMissing("not asked for")


def _asked(peers: Mapping[str, Callable[[Case], Run]], names: list[str]) -> dict[str, Callable[[Case], Run]]:
    """`peers`, those that are not among `names` as rows that say so; all if `names` is empty."""
    return {n: make if not names or n in names or n == FASTSR else _not_asked_for for n, make in peers.items()}


def measure_job(group: str, name: str, case: Case | None, seconds: float, peers: list[str]) -> dict[str, Any]:
    if case is None:
        rows = {peer: memory.measure(peer, name, "640x360") for peer in FORWARD}
        return {"group": group, "case": f"{name} 640x360", "peers": rows}
    if group == "train":
        rows = compare(
            case, _asked(TRAINING, peers), torch_training("reference", False, False)(case), seconds, tolerance=0.05
        )
    else:
        rows = compare(case, _asked(FORWARD, peers), torch_forward("reference", False, False)(case), seconds)
    work = fastsr.complexity(case.build(), *case.shape[2:]).macs * case.shape[0] if group == "models" else None
    result: dict[str, Any] = {"group": group, "case": case.name, "shape": case.shape, "peers": rows}
    if work and "ms" in rows["fastsr"]:
        result["gflops"] = 2 * work / rows["fastsr"]["ms"] / 1e6
    best = best_peer(rows)
    return {**result, "best_peer": best[0] if best else None, "ratio": ratio(rows)}


def table(result: dict[str, Any]) -> str:
    """One row, readable."""
    parts = []
    for peer, row in result["peers"].items():
        if "ms" in row:
            parts.append(f"{peer} {row['ms']:.1f}")
        elif "peak_mb" in row:
            parts.append(f"{peer} {row['peak_mb']:.0f} MB")
        else:
            parts.append(f"{peer} - ({row['reason'][:40]})")
    faster = f"  {result['ratio']:.2f}x of {result['best_peer']}" if result.get("ratio") else ""
    return f"{result['case']:<28}{faster:<32} {' | '.join(parts)}"


def write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Times fastsr's CPU path against its peers; milliseconds, medians.")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"groups of {', '.join(GROUPS)}")
    parser.add_argument("--sizes", default=",".join(cases.SIZES), help=f"LR sizes of {', '.join(cases.SIZES)}")
    parser.add_argument("--peers", default="", help=f"of {', '.join(FORWARD)}; all by default")
    parser.add_argument("--names", default="", help="operators and networks; all by default")
    parser.add_argument("--seconds", type=float, default=6.0, help="per case, at least 5 runs of each peer")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path, help="where the result goes")
    arguments = parser.parse_args(argv)
    groups, sizes = arguments.only.split(","), arguments.sizes.split(",")
    peers = list(filter(None, arguments.peers.split(",")))
    for value, accepted in ((groups, GROUPS), (sizes, tuple(cases.SIZES)), (peers, tuple(FORWARD))):
        unknown = set(value) - set(accepted)
        if unknown:
            parser.error(f"{', '.join(sorted(unknown))} is not known; accepted are {', '.join(accepted)}")
    torch.set_num_threads(arguments.threads)
    content: dict[str, Any] = {"environment": environment(), "ceilings": ceilings(), "rows": []}
    for group, name, case in tqdm(
        jobs(groups, sizes, list(filter(None, arguments.names.split(",")))), file=sys.stderr, disable=None
    ):
        content["rows"].append(measure_job(group, name, case, arguments.seconds, peers))
        row, peak = content["rows"][-1], content["ceilings"]["fma_gflops"]
        if peak and "gflops" in row:
            row["share_of_fma_peak"] = row["gflops"] / peak  # above 1 is possible: Winograd needs fewer
        print(table(row), flush=True)
        if arguments.json:
            write(arguments.json, content)
        torch._dynamo.reset()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
