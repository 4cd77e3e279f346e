"""`pytest benchmarks`: the registry through pytest-benchmark, one test for each case and peer."""

from __future__ import annotations

import pytest

from fastsr.bench.cases import Case
from fastsr.bench.machine import find_device
from fastsr.bench.registry import load_registry
from fastsr.bench.run import Request, check, jobs


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastsr", "what of the registry is measured; lists are separated by commas")
    group.addoption("--bench-groups", default="ops", help="of ops, models, train (default: ops)")
    group.addoption("--bench-device", default="auto", help="such as cpu or cuda:0 (default: cuda if present)")
    group.addoption("--bench-shape", default="", help="LR sizes in place of the registry's, such as 640x360")
    group.addoption("--bench-peers", default="fastsr,eager channels_last", help="(default: %(default)s)")
    group.addoption("--bench-full", action="store_true", help="the whole grid in place of the small one")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "bench_case" not in metafunc.fixturenames:
        return
    option, registry = metafunc.config.getoption, load_registry()
    request = Request(
        groups=option("--bench-groups").split(","),
        device=find_device(option("--bench-device")),
        sizes=[size for size in option("--bench-shape").split(",") if size],
        peers=option("--bench-peers").split(","),
        quick=not option("--bench-full"),
    )
    check(request, registry)
    points: list[tuple[Case, str]] = [(case, peer) for case, peers in jobs(request, registry) for peer in peers]
    metafunc.parametrize(("bench_case", "bench_peer"), points, ids=[f"{case.id}-{peer}" for case, peer in points])
