"""How things are timed: peers take turns in one process, medians with 20th and 80th percentiles, and a noise probe.

A turn gives every peer a pause, a run that is not timed and some that are, so that a busy phase of the machine falls on
all of them. The probe is a fixed piece of work that is timed once a turn: what it spreads is the machine's doing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fastsr import _native
from fastsr.bench.peers import Runner

PAUSE = 0.05  # seconds; the thread pools of some peers spin on for a while after a run and would slow the next peer
TURN = 0.02  # seconds of timed runs a peer gets in a turn, at least one and at most MOST runs
MOST = 50
WARM = 1.0  # a run longer than that, in seconds, needs no run before it that is not timed
SLOW_TURNS = 3  # where a turn takes more than half of the time that a case is given
NOISY = 0.05
FLUSH_BYTES = 256 << 20

Run = Callable[[], Any]


class BrokenRunnerError(Exception):
    """A runner that had been found right failed while it was timed."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.name = name


def time_cpu(run: Run, count: int) -> list[float]:
    """Milliseconds of `count` calls; the clock costs about a tenth of a microsecond of each."""
    clock, times = time.perf_counter_ns, []
    for _ in range(count):
        start = clock()
        run()
        times.append(clock() - start)
    return [t / 1e6 for t in times]


def time_cuda(run: Run, count: int) -> list[float]:
    """Milliseconds of `count` calls by events, each with a cold L2 cache."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for start, end in events:
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def timer(device: torch.device) -> Callable[[Run, int], list[float]]:
    return time_cuda if device.type == "cuda" else time_cpu


def probe(device: torch.device) -> Run:
    """A few milliseconds of work that is always the same."""
    if device.type == "cuda":
        a = torch.empty(64 << 20, dtype=torch.int8, device=device)
        b = torch.empty_like(a)
        return lambda: b.copy_(a)
    if _native.CPU.loaded:
        return lambda: torch.ops.fastsr._cpu_fma(50_000)
    x = torch.rand(256, 256)
    return lambda: x @ x


def overhead_us() -> float:
    """What timing adds to a call on the CPU: the median time of a call that does nothing."""
    return statistics.median(time_cpu(lambda: None, 1000)) * 1e3


def summary(times: list[float]) -> dict[str, Any]:
    """ms (the median), p20, p80 and the number of runs."""
    ordered = sorted(times)
    n = len(ordered)
    return {"ms": statistics.median(ordered), "p20": ordered[n // 5], "p80": ordered[-1 - n // 5], "runs": n}


def spread(times: list[float]) -> float:
    """How far the 80th percentile lies above the 20th, as a share."""
    found = summary(times)
    return float(found["p80"] / found["p20"] - 1) if found["p20"] > 0 else 0.0


def take_turns(
    runners: Mapping[str, Runner], seconds: float, device: torch.device, least: int = 5
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time every runner in turns until `seconds` are over and `least` turns are done (SLOW_TURNS of long ones).

    Raises:
        BrokenRunnerError: one of them fails.

    Returns:
        Milliseconds per runner, and what the probe saw: `spread`, and `steal`, the share of the processors' time that
        went to other virtual machines (None where the system does not say).
    """
    measure, fixed = timer(device), probe(device)
    times: dict[str, list[float]] = {name: [] for name in runners}
    counts: dict[str, int] = {}
    probed: list[float] = []
    stolen, begin, turns = _processor_times(), time.perf_counter(), 0
    while runners:
        fixed()
        probed += measure(fixed, 1)
        for name, runner in runners.items():
            if device.type == "cpu":
                time.sleep(PAUSE)
            try:
                times[name] += _turn(name, runner, counts, device)
            except Exception as error:
                raise BrokenRunnerError(name, error) from error
        turns += 1
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds and turns >= (least if elapsed < turns * seconds / 2 else min(least, SLOW_TURNS)):
            break
    return times, {"spread": spread(probed), "steal": _stolen(stolen, _processor_times())} if probed else {}


def _turn(name: str, runner: Runner, counts: dict[str, int], device: torch.device) -> list[float]:
    """One turn of a runner; `counts` keeps how many runs it gets in one, 0 for a long run that needs no warming."""
    with runner.context():
        if counts.get(name) != 0:
            start = time.perf_counter()
            runner.run()
            _finish(device)
            took = time.perf_counter() - start
            counts.setdefault(name, 0 if took > WARM else min(MOST, max(1, int(TURN / max(took, 1e-9)))))
        return timer(device)(runner.run, counts[name] or 1)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _processor_times() -> list[int]:
    try:
        with Path("/proc/stat").open(encoding="ascii") as file:
            return [int(value) for value in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return []


def _stolen(before: list[int], after: list[int]) -> float | None:
    passed = sum(after) - sum(before)
    return (after[7] - before[7]) / passed if len(before) == len(after) == 8 and passed > 0 else None


def uncertainty(found: Mapping[str, Any]) -> float:
    """Twice the standard error of the median, as a share of it, from the middle 60 % of what was measured."""
    return float(1.5 * (found["p80"] - found["p20"]) / found["ms"] / found["runs"] ** 0.5)


def noisy(seen: Mapping[str, Any], compared: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a ratio between `compared` may be off by more than NOISY, by the probe or by their own spread."""
    probed = max(seen.get("spread", 0.0), seen.get("steal") or 0.0)
    return probed > NOISY or any(uncertainty(found) > NOISY for found in compared if "ms" in found)
