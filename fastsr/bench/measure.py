"""How things are timed: peers take turns in one process, medians with 20th and 80th percentiles, and their worth.

A turn gives every peer a pause, a run that is not timed and some that are, so that a busy phase of the machine falls on
all of them. Each turn is thus a small measurement of every ratio, and how these differ says how far the ratio of
another run may be off (`doubt`). A fixed piece of work, timed once a turn, tells what the machine does by itself.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastsr import _native
from fastsr.bench.peers import Runner
from fastsr.bench.registry import Peer

PAUSE = 0.05  # seconds; the thread pools of some peers spin on for a while after a run and would slow the next peer
TURN = 0.02  # seconds of timed runs a peer gets in a turn, at least one and at most MOST runs
MOST = 50
WARM = 1.0  # a run longer than that, in seconds, needs no run before it that is not timed
SLOW_TURNS = 3  # where a turn takes more than half of the time that a case is given; then only contenders go on
CONTENDER = 1.5  # times the best peer; who takes longer is none
PATIENCE = 3  # times its time a case may get until its ratio is known to NOISY
EXTRA = 90.0  # seconds beyond their time that the cases of a run may get together
NOISY = 0.05
FLUSH_BYTES = 256 << 20

Run = Callable[[], Any]
Turns = list[list[float]]  # milliseconds of the runs of each turn


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
    runners: Mapping[str, Runner], seconds: float, device: torch.device, least: int = 5, longest: float | None = None
) -> tuple[dict[str, Turns], dict[str, Any]]:
    """Time every runner in turns until `seconds` are over, `least` turns are done and the ratio is known to NOISY.

    Patience for the last ends after `longest` seconds (PATIENCE times `seconds`). Where turns are long, runners that
    are no contenders end after SLOW_TURNS.

    Raises:
        BrokenRunnerError: one of them fails.

    Returns:
        The turns of each runner, and what the machine did: `spread` of the fixed piece of work, and `steal`, the share
        of the processors' time that went to other virtual machines (None where the system does not say).
    """
    measure, fixed = timer(device), probe(device)
    times: dict[str, Turns] = {name: [] for name in runners}
    longest = PATIENCE * seconds if longest is None else longest
    going, counts = dict(runners), dict[str, int]()
    probed: list[float] = []
    stolen, begin, turns = _processor_times(), time.perf_counter(), 0
    while going:
        _pause(device)  # or the thread pool of the last peer would still be spinning and slow the probe tenfold
        fixed()
        probed += measure(fixed, 1)
        for name, runner in going.items():
            _pause(device)
            try:
                times[name].append(_turn(name, runner, counts, device))
            except Exception as error:
                raise BrokenRunnerError(name, error) from error
        turns += 1
        elapsed = time.perf_counter() - begin
        if elapsed > turns * seconds / 2 and turns >= SLOW_TURNS:
            going = {name: runners[name] for name in contenders(times) if name in going}
        known = doubt(times) <= NOISY or elapsed >= longest
        if elapsed >= seconds and turns >= least and known:
            break
    return times, {"spread": spread(probed), "steal": _stolen(stolen, _processor_times())} if probed else {}


def _pause(device: torch.device) -> None:
    if device.type == "cpu":
        time.sleep(PAUSE)


def _typical(turns: Turns) -> float:
    return statistics.median(value for turn in turns for value in turn)


def contenders(times: Mapping[str, Turns]) -> list[str]:
    """fastsr, the best of the others, and who is not far behind it."""
    others = {name: _typical(turns) for name, turns in times.items() if not Peer(name).ours}
    best = min(others.values(), default=0.0)
    return [name for name in times if name not in others or others[name] <= CONTENDER * best]


def doubt(times: Mapping[str, Turns]) -> float:
    """How far the ratio of the best peer to fastsr in another run may be from that in this one, as a share.

    With 95 % confidence, as far as turns are a fair sample of what the machine does; without either of the two, for the
    time of the other; without both, as where kinds of fastsr's kernels are compared, for the ratio of the first two.
    """
    others = {name: _typical(turns) for name, turns in times.items() if turns and not Peer(name).ours}
    compared = [times[name] for name in ("fastsr", min(others, key=others.__getitem__, default="")) if times.get(name)]
    compared = compared or [turns for turns in times.values() if turns][:2]
    if not compared:
        return 0.0
    logs = [[math.log(max(statistics.median(turn), 1e-9)) for turn in turns] for turns in compared]
    return disagreement([a - b for a, b in zip(*logs, strict=False)] if len(logs) == 2 else logs[0])


def disagreement(values: Sequence[float]) -> float:
    """How far the medians of two such samples of logarithms may be apart, as a share, with 95 % confidence.

    By Student's t of all values, or of their trimmed mean (Yuen 1974) if that says less, as it does with outliers; a
    median of normal values is off by a quarter more than a mean.
    """
    n, bounds = len(values), [math.inf]
    for cut in {0, n // 5}:
        kept = n - 2 * cut
        if kept >= 3:
            ordered = sorted(values)
            pulled_in = [min(max(value, ordered[cut]), ordered[-1 - cut]) for value in values]
            error = statistics.stdev(pulled_in) * math.sqrt((n - 1) / (kept * (kept - 1)))
            bounds.append(math.expm1(min(1.25 * math.sqrt(2) * _student(kept - 1) * error, 100.0)))
    return min(bounds)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution."""
    exact = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    return exact[freedom - 1] if freedom <= len(exact) else 1.96 + 2.5 / freedom


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


def noisy(seen: Mapping[str, Any]) -> bool:
    """Whether two runs may differ in their ratio by more than NOISY, or the machine served others for longer."""
    return max(seen.get("doubt", 0.0), seen.get("steal") or 0.0) > NOISY
