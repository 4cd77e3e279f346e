"""Every case and peer of the registry that the options ask for, timed by pytest-benchmark; see conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fastsr.bench import verify
from fastsr.bench.cases import Case
from fastsr.bench.machine import find_device
from fastsr.bench.peers import PeerMissing, make_runner
from fastsr.bench.registry import load_registry
from fastsr.bench.roofline import count
from fastsr.bench.run import tolerance


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return find_device(request.config.getoption("--bench-device"))


@pytest.fixture(autouse=True)
def _compile_anew() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@lru_cache(maxsize=1)
def expected(case: Case, device: torch.device) -> list[list[Tensor]]:
    return verify.expected(case, device)


@pytest.mark.benchmark(min_rounds=5, max_time=0.3, warmup=True, warmup_iterations=1)
def test_speed(benchmark: Any, bench_case: Case, bench_peer: str, device: torch.device) -> None:
    registry = load_registry()
    try:
        runner = make_runner(registry.peers[bench_peer], bench_case, device)
    except PeerMissing as missing:
        pytest.skip(str(missing))
    wrong = verify.problem(runner, bench_case, expected(bench_case, device), tolerance(registry, bench_case))
    assert wrong is None, wrong

    def run() -> None:
        runner.run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = bench_case.id
    benchmark.extra_info.update(peer=bench_peer, work=dict(vars(count(bench_case))))
    with runner.context():
        benchmark(run)
