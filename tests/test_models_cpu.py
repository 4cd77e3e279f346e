"""The networks on the fused CPU operators, as a whole: accuracy of outputs and all gradients, layouts, graphs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastsr
from fastsr.models import create_model

pytestmark = pytest.mark.usefixtures("cpu_kernels")

NETS: dict[str, dict[str, Any]] = {
    "alkdnet": {"num_block": 2, "scale": 2},
    "bsrn": {"num_block": 1, "scale": 3},
    "mlrn": {"num_block": 2, "scale": 2},
    "rlfn": {"num_block": 1, "scale": 4, "input_range": 1.0},
}


def network(name: str, **settings: Any) -> nn.Module:
    """A small network whose features and statistics vary (fresh biases of zero would leave paths untested)."""
    torch.manual_seed(1)
    net = create_model(name, **{**NETS[name], **settings})
    with torch.no_grad():
        for key, p in net.named_parameters():
            if p.dim() == 1:
                p.copy_(torch.randn_like(p) * 0.1 + (1.0 if "norm.weight" in key else 0.0))
    return net


def image(dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 3, 21, 26, generator=generator).to(dtype).contiguous(memory_format=memory_format)


def run(net: nn.Module, x: Tensor, backend: str) -> dict[str, Tensor]:
    """The output and the gradient of every parameter and of the image, by name."""
    x = x.detach().requires_grad_()
    net.zero_grad()
    with fastsr.backend(backend):
        y = net(x)
        target = torch.rand(y.shape, generator=torch.Generator().manual_seed(4)).to(y.dtype)
        (y - target).square().mean().backward()
    results = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    assert x.grad is not None
    assert len(results) == len(list(net.parameters()))
    return {**results, "output": y.detach(), "image": x.grad}


@pytest.mark.parametrize("name", NETS)
def test_outputs_and_gradients_are_within_twice_the_error_of_pytorch(name: str) -> None:
    net = network(name)
    exact = run(copy.deepcopy(net).double(), image(torch.float64), "reference")
    plain, fused = run(net, image(), "reference"), run(net, image(), "auto")
    # The operators' own tests hold the error of each result. Behind a chain of operators the error of one small tensor
    # is a matter of luck, on either side: hold the mean over all tensors to the rule, and single ones loosely, where a
    # gradient that is really wrong would be off by orders of magnitude.
    varying = [k for k, e in exact.items() if e.norm() > 0]  # a channel whose ReLU never opens has no gradient
    plain_errors, fused_errors = (
        {k: ((results[k] - exact[k]).norm() / exact[k].norm()).item() for k in varying} for results in (plain, fused)
    )
    assert sum(fused_errors.values()) <= 2 * sum(plain_errors.values())
    worst = max(fused_errors, key=lambda k: fused_errors[k])
    assert fused_errors[worst] <= 4 * max(plain_errors.values()), worst
    assert fused_errors["output"] <= 2 * plain_errors["output"]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_accurate_as_pytorch(name: str, dtype: torch.dtype) -> None:
    net = network(name)
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(image(torch.float64))
        half, x = copy.deepcopy(net).to(dtype), image(dtype)
        with fastsr.backend("reference"):
            plain = half(x)
        fused = half(x)
    assert fused.dtype == dtype
    assert (fused - exact).abs().max() <= 2 * (plain - exact).abs().max()
    assert (fused - exact).abs().mean() <= 1.2 * (plain - exact).abs().mean()


@pytest.mark.parametrize("name", NETS)
def test_the_output_has_the_layout_of_the_image_and_the_same_values(name: str) -> None:
    net = network(name)
    with torch.no_grad():
        nchw, nhwc = net(image()), net(image(memory_format=torch.channels_last))
        part = torch.full((2, 3, 25, 60), torch.nan)[:, :, 2:23, 4:56:2].copy_(image())
        sliced = net(part)
    assert nchw.is_contiguous()
    assert nhwc.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(nchw, nhwc)
    assert torch.equal(nchw, sliced)


@pytest.mark.parametrize("name", NETS)
def test_results_do_not_depend_on_threads(name: str) -> None:
    """Of the whole net only up to the rounding of operators that run on the reference path."""
    net, threads = network(name), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(run(net, image(), "auto"))
    finally:
        torch.set_num_threads(threads)
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=1e-4, atol=1e-5 * value.abs().max().item())


@pytest.mark.parametrize("name", NETS)
def test_compiles_in_one_graph(name: str) -> None:
    net = network(name, num_block=1)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image()), net(image()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_exports_standard_operators_only(name: str) -> None:
    net = network(name, num_block=1).eval()
    exported = torch.export.export(net, (image(),))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not [t for t in targets if t.startswith("fastsr")]
    torch.testing.assert_close(exported.module()(image()), net(image()), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", NETS)
def test_a_trace_can_be_saved_and_trained(name: str, tmp_path: Path) -> None:
    """A trace holds operators, not Python functions, and those that autograd can record."""
    net = network(name, num_block=1)
    frozen = fastsr.freeze(net)
    with torch.no_grad():
        for file, traced in (("net.pt", net), ("frozen.pt", frozen)):
            torch.jit.save(torch.jit.trace(traced, image()), tmp_path / file)
        torch.testing.assert_close(torch.jit.load(tmp_path / "frozen.pt")(image()), frozen(image()))
    want = run(net, image(), "cpu")
    for key, value in run(torch.jit.load(tmp_path / "net.pt"), image(), "cpu").items():
        torch.testing.assert_close(value, want[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", NETS)
def test_a_trace_has_the_gradient_of_the_image(name: str) -> None:
    """Also one of a network whose weights need none, made without autograd."""
    net = network(name, num_block=1).requires_grad_(False)
    x = image().requires_grad_()
    with torch.no_grad():
        traced = torch.jit.trace(net, image())
    (want,), (got,) = (torch.autograd.grad(f(x).square().sum(), x) for f in (net, traced))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_checkpointing_gives_the_same_gradients(name: str, reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(name, num_block=1)
    want = run(net, image(), "cpu")
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda x: checkpoint(forward, x, use_reentrant=reentrant))
    for key, value in run(net, image(), "cpu").items():
        assert torch.equal(value, want[key]), key


def test_complexity_is_that_of_the_papers() -> None:
    assert fastsr.complexity(create_model("alkdnet", scale=2), 64, 64).params == 372716
    assert tuple(fastsr.complexity(create_model("mlrn_ntire", scale=4))) == (274710, 16854452224, 97870976, 43)
