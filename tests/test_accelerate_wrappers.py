"""accelerate with DistributedDataParallel, DataParallel, torch.compile and moving averages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate_checks import COUNTS, SMALL, build, image, results
from torch import nn

from fastsr.patch import accelerate


@pytest.fixture(params=SMALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# ---- wrappers


def test_distributed_data_parallel(tmp_path: Path, name: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        want = results(build(name), image())
        before, after = build(name), build(name)
        accelerate(before)
        wrapped = [nn.parallel.DistributedDataParallel(net) for net in (before, after)]
        report = accelerate(wrapped[1])
        assert Counter(report.swapped.values()) == COUNTS[name]
        assert all(path.startswith("module.") for path in report.swapped)
        for net in wrapped:
            for _ in range(2):  # an unused parameter would fail the second time
                got = results(net, image())
            for key, value in want.items():
                key = key if key in ("output", "input") else f"module.{key}"
                torch.testing.assert_close(got[key], value, rtol=1e-3, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()


def test_data_parallel_without_devices() -> None:
    net = nn.DataParallel(build("rlfn"))
    want = net(image())
    assert accelerate(net).swapped["module.block_1"] == "RLFB"
    torch.testing.assert_close(net(image()), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bsrn", "mlrn"])
def test_torch_compile_before_and_after(name: str) -> None:
    torch._dynamo.reset()
    net = build(name)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    want = compiled(image())
    report = accelerate(compiled)
    assert Counter(report.swapped.values()) == COUNTS[name]
    assert all(path.startswith("_orig_mod.") for path in report.swapped)
    torch.testing.assert_close(compiled(image()), want, rtol=1e-4, atol=1e-5)
    again = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(again(image()), net(image()))


def test_exponential_moving_average_of_an_accelerated_network() -> None:
    net = build("mlrn")
    accelerate(net)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(net)
    for value in net.parameters():
        value.data.zero_()
    average.update_parameters(net)
    halved = build("mlrn")
    for value in halved.parameters():
        value.data.mul_(0.5)
    torch.testing.assert_close(average(image()), halved(image()), rtol=1e-4, atol=1e-6)
