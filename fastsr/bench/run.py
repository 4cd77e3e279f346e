"""A benchmark run: every case of what was asked for, each peer made, checked and timed in turns, a row each."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import fastsr
from fastsr.bench import memory, verify
from fastsr.bench.cases import Case, make_case
from fastsr.bench.limit import TooSlow, limited
from fastsr.bench.machine import ceilings, environment
from fastsr.bench.measure import EXTRA, PATIENCE, BrokenRunnerError, Turns, doubt, noisy, summary, take_turns
from fastsr.bench.peers import PeerMissing, Runner, make_runner
from fastsr.bench.registry import DIRECTIONS, DTYPES, LAYOUTS, Grid, Peer, Registry, nearest, parse_size
from fastsr.bench.results import ResultFile, Row, best_peer, ratio
from fastsr.bench.roofline import Work, count


@dataclass(frozen=True)
class Request:
    """What to run; an empty list is what the registry has for the group and device.

    Attributes:
        groups: of "ops", "models" and "train".
        device: where.
        names, sizes, dtypes, layouts, directions, peers: in place of the registry's.
        quick: the registry's small grid, and a tenth of the time.
        seconds: for the timed part of each row; each peer is timed in several turns in any case.
        memory: also measure peaks on the CPU, each peer in a process of its own.
        budget: seconds after which no further row is begun; None for as long as it takes.
        peer_limit: seconds in which a peer must be ready, compiled and checked; None for as long as it takes.
    """

    groups: list[str]
    device: torch.device
    names: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    layouts: list[str] = field(default_factory=list)
    directions: list[str] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    quick: bool = False
    seconds: float = 3.0
    memory: bool = False
    budget: float | None = None
    peer_limit: float | None = 45.0

    def settings(self) -> dict[str, Any]:
        """What must be equal for rows to belong to one result."""
        return {"seconds": self.seconds, "quick": self.quick}


def check(request: Request, registry: Registry) -> None:
    """Raise InputError for a name that is not known, with the nearest one that is."""
    known = [name for group in request.groups for name in registry.names(group)]
    nearest("operator or network" if "ops" in request.groups else "network", request.names, known)
    nearest("dtype", request.dtypes, DTYPES)
    nearest("layout", request.layouts, LAYOUTS)
    nearest("direction", request.directions, DIRECTIONS)
    nearest("peer", request.peers, registry.peers)
    for size in request.sizes:
        parse_size(size)


def jobs(request: Request, registry: Registry) -> Iterator[tuple[Case, list[str]]]:
    """Every case, with the names of its peers."""
    for group in request.groups:
        grids = registry.grids(group, request.device.type, request.quick)
        if request.names or request.sizes or request.dtypes:  # the grids differ in these; take what was asked for, once
            grids = grids[:1]
        for grid in grids:
            yield from _cases(request, registry, group, grid)


def _cases(request: Request, registry: Registry, group: str, grid: Grid) -> Iterator[tuple[Case, list[str]]]:
    known = registry.names(group)
    names = [name for name in request.names if name in known] if request.names else grid.names or known
    peers = request.peers or grid.peers
    for size in request.sizes or grid.sizes:
        for name in names:
            for dtype in request.dtypes or grid.dtypes:
                for layout in request.layouts or grid.layouts:
                    for direction in request.directions or grid.directions:
                        yield make_case(registry, group, name, size, dtype, layout, direction), peers


def run(
    request: Request,
    registry: Registry,
    path: Path | None,
    told: Callable[[Row], None] = lambda row: None,
    progress: Callable[[list[Any]], Any] = iter,
) -> ResultFile:
    """Runs what was asked for and returns the result, written to `path` after every row.

    Args:
        told: called with each row as it is ready.
        progress: wraps the list of cases, as tqdm does.

    Raises:
        InputError: something asked for is not known, a device is not there, or `path` holds another run.
    """
    check(request, registry)
    begin = time.monotonic()
    found = ResultFile(path, environment(request.device), request.settings())
    facts = found.content["environment"]
    found.begin({"date": facts["date"], "ceilings": ceilings(request.device, small=request.quick)})
    extra = Extra(EXTRA)
    for case, peers in progress(list(jobs(request, registry))):
        if found.has(case.id, peers):
            continue
        if request.budget is not None and time.monotonic() - begin > request.budget:
            row = {**_empty_row(case), "reason": f"not begun within {request.budget:g} seconds, the budget"}
        else:
            row = measure(case, peers, request, registry, found.ceilings, extra)
        found.add(row)
        told(row)
        torch._dynamo.reset()
        _release(request.device)
    found.finish()
    return found


@dataclass
class Extra:
    """Seconds that are left for cases whose ratio is not known well enough in the time of one."""

    seconds: float


def measure(
    case: Case, names: list[str], request: Request, registry: Registry, limits: dict[str, Any], extra: Extra
) -> Row:
    """One row: peers that are missing, failed or wrong have a reason in the place of a time."""
    row = _empty_row(case)
    row["not_asked"] = [name for name, peer in registry.peers.items() if name not in names and _fits(peer, case)]
    try:
        work = count(case)
        row["work"] = dict(vars(work))
        reason = memory.too_big(case, request.device)
        want = verify.expected(case, request.device) if reason is None else []
    except Exception as error:  # too small a map for an operator, or memory after all: the other rows go on
        reason = _sentence(error)
    if reason is not None:
        row["reason"] = reason
        row["peers"] = {name: {"reason": reason} for name in names}
        return row
    runners: dict[str, Runner] = {}
    for name in names:
        made = _ready(registry.peers[name], case, request, want, tolerance(registry, case))
        if isinstance(made, Runner):
            runners[name] = made
        else:
            row["peers"][name] = {"reason": made}
    del want
    times, row["noise"] = _timed(runners, request, row, extra)
    for name, turns in times.items():
        row["peers"][name] = _figures(summary([value for turn in turns for value in turn]), work, limits, case.dtype)
        _add_peak(row["peers"][name], registry.peers[name], runners[name], case, request)
    floor = work.floor(limits, case.dtype)
    row["floor_ms"], row["bound"] = floor or (None, None)
    best = best_peer(row)
    row["best_peer"], row["ratio"] = (best[0] if best else None), ratio(row)
    if times:
        row["noise"]["doubt"] = doubt(times)
    row["noisy"] = noisy(row["noise"])
    return row


def _empty_row(case: Case) -> Row:
    keys = ("id", "group", "name", "operator", "size", "dtype", "layout", "direction")
    return {**{key: getattr(case, key) for key in keys}, "peers": {}, "not_asked": [], "best_peer": None, "ratio": None}


def tolerance(registry: Registry, case: Case) -> float:
    """How far the results of `case` may be off, as a share of their largest value."""
    kind = "train" if case.group == "train" else "forward" if case.direction == "forward" else "backward"
    return registry.tolerances[kind][case.dtype]


def _fits(peer: Peer, case: Case) -> bool:
    return case.group in peer.groups and case.direction in peer.directions


def _ready(peer: Peer, case: Case, request: Request, want: list[Any], allowed: float) -> Runner | str:
    """The peer, made and found right, or why it cannot be timed."""
    try:
        with limited(None if peer.ours else request.peer_limit):
            runner = make_runner(peer, case, request.device)
            return verify.problem(runner, case, want, allowed) or runner
    except TooSlow as slow:
        return f"{slow}; raise --peer-limit"
    except PeerMissing as missing:
        return str(missing)
    except Exception as error:  # a peer that breaks is a row, not the end
        return _sentence(error)


def _timed(
    runners: dict[str, Runner], request: Request, row: Row, extra: Extra
) -> tuple[dict[str, Turns], dict[str, Any]]:
    """Takes turns; without those who break on the way."""
    seconds = request.seconds / 10 if request.quick else request.seconds
    while True:
        begin, longest = time.monotonic(), seconds + min((PATIENCE - 1) * seconds, extra.seconds)
        try:
            found = take_turns(runners, seconds, request.device, longest=longest)
            extra.seconds = max(0.0, extra.seconds - max(0.0, time.monotonic() - begin - seconds))
            return found
        except BrokenRunnerError as broken:
            row["peers"][broken.name] = {"reason": _first_line(str(broken))}
            del runners[broken.name]


def _figures(found: dict[str, Any], work: Work, limits: dict[str, Any], dtype: str) -> dict[str, Any]:
    """GB/s and GFLOP/s of the ideal work, and their shares of the ceilings."""
    found["gbs"] = work.bytes / found["ms"] / 1e6
    found["gflops"] = 2 * work.macs / found["ms"] / 1e6
    rate = limits.get(f"matrix_{dtype}_gflops") or limits.get("fma_gflops")
    if limits.get("copy_gbs"):
        found["copy_share"] = found["gbs"] / limits["copy_gbs"]
    if rate:
        found["rate_share"] = found["gflops"] / rate
    return found


def _add_peak(found: dict[str, Any], peer: Peer, runner: Runner, case: Case, request: Request) -> None:
    if request.device.type == "cuda":
        with runner.context():
            found["peak_mb"] = memory.peak_cuda(runner.run)
    elif request.memory:
        peak = memory.peak_cpu(peer, case)
        found.update({"no_peak": peak["reason"]} if "reason" in peak else peak)


def _release(device: torch.device) -> None:
    gc.collect()
    fastsr.empty_cache()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _sentence(error: Exception) -> str:
    return _first_line(f"{type(error).__name__}: {error}")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200]
