"""MLRN on the CUDA C++ kernels against float64: whole, with every gradient, and its block in inference."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from kernel_checks import assert_network_within_twice, device_of, feature_map, moved
from torch import Tensor, nn

import fastsr
from fastsr import ops
from fastsr.nn import MLRB

pytestmark = pytest.mark.usefixtures("cuda_kernels")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = device_of("cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_gradients_are_within_twice_the_error_of_pytorch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = fastsr.create_model("mlrn", scale=2, num_feat=26, num_block=1, esa_channels=8).to(dtype)
    assert_network_within_twice(net, feature_map((1, 3, 18, 17), "nchw").sigmoid().to(dtype), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frozen_copy_is_within_twice_the_error_of_pytorch(dtype: torch.dtype) -> None:
    """The fused blocks of inference."""
    torch.manual_seed(0)
    net = fastsr.create_model("mlrn", scale=2, num_feat=26, num_block=2, esa_channels=8).to(DEVICE, dtype)
    x = moved(feature_map((1, 3, 19, 17), "nchw").sigmoid().to(dtype), DEVICE)
    with torch.no_grad():
        with fastsr.backend("cuda"):
            fused = fastsr.freeze(net)(x)
        with fastsr.backend("reference"):
            plain, exact = net(x), net.double()(x.double())
    errors = [(y.double() - exact).norm().item() for y in (plain, fused)]
    assert errors[1] <= 2 * errors[0]


def inner_channels(net: nn.Module) -> set[int]:
    return {conv.in_channels for conv in net.modules() if isinstance(conv, nn.Conv2d)} - {1, 3}


@pytest.mark.parametrize("name", ("mlrn", "rlfn"))
def test_a_frozen_copy_has_whole_vectors_of_channels(name: str) -> None:
    """58, 52 or 50 channels and 12 inside the ESA, but not where somebody else would see them."""
    torch.manual_seed(0)
    options = {"rlfn": {"mid_channels": 50}, "mlrn": {}}[name]
    net = fastsr.create_model(name, scale=2, num_block=1, esa_channels=12, **options).to(DEVICE).requires_grad_(False)
    channels, x = inner_channels(net), moved(feature_map((1, 3, 18, 17), "nchw").sigmoid(), DEVICE)
    with fastsr.backend("cuda"):
        frozen = fastsr.freeze(net)
        y = frozen(x)
        handle = net.block_1.register_forward_hook(lambda *_: None)
        kept = [fastsr.freeze(net)]
        handle.remove()
    with fastsr.backend("reference"):
        kept.append(fastsr.freeze(net))
        torch.testing.assert_close(y, net(x), rtol=1e-4, atol=1e-4)
    with fastsr.backend("cuda"):
        net.block_1.c5.__class__ = type("Own", (nn.Conv2d,), {})
        kept.append(fastsr.freeze(net))
    assert inner_channels(frozen) == {-(-c // 8) * 8 for c in channels} != channels
    assert [inner_channels(copy) for copy in kept] == [channels] * 3


def block_and_map(num_feat: int = 16, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[MLRB, Tensor]:
    torch.manual_seed(0)
    block = MLRB(num_feat, **options).to(DEVICE, dtype).requires_grad_(False)
    return block, moved(feature_map((2, num_feat, 18, 17), "nhwc", dtype), DEVICE)


def fused_calls() -> Any:
    return patch("fastsr.ops.conv_mix_reduce", wraps=ops.conv_mix_reduce)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_feat", "options"),
    [(58, {}), (50, {"activation": "leaky_relu"}), (52, {"depthwise_conv": False}), (16, {"conv_mix": False})],
    ids=str,
)
def test_a_block_is_within_twice_the_error_of_pytorch(num_feat: int, options: Any, dtype: torch.dtype) -> None:
    block, x = block_and_map(num_feat, dtype, **options)
    with torch.no_grad(), fused_calls() as calls:
        with fastsr.backend("reference"):
            plain, exact = block(x), block.double()(x.double())
        assert not calls.called
        block.to(dtype)
        with fastsr.backend("cuda"):
            y = block(x)
        assert calls.called == options.get("conv_mix", True)
    assert (y.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()


def test_a_block_that_is_trained_or_observed_is_not_fused() -> None:
    block, x = block_and_map()
    seen: list[tuple[Tensor, Tensor]] = []
    with fastsr.backend("cuda"), fused_calls() as calls:
        expected = block(x)
        assert calls.call_count == 1
        handle = block.esa.register_forward_hook(lambda _, given, y: seen.append((given[0], y)))
        hooked = block(x)
        handle.remove()
        for leaf in (block.esa.conv4.weight, x):
            leaf.requires_grad_()
            block(x).sum().backward()
            assert leaf.grad is not None
            leaf.requires_grad_(False)
        assert calls.call_count == 1
    assert seen[0][0].shape == x.shape and torch.equal(seen[0][1], hooked)
    torch.testing.assert_close(hooked, expected, rtol=1e-4, atol=1e-4)


def test_a_block_compiles_in_one_graph() -> None:
    block, x = block_and_map()
    with fastsr.backend("cuda"), torch.no_grad():
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), block(x))


def test_a_block_of_more_channels_inside_the_esa_is_not_fused() -> None:
    block, x = block_and_map(esa_channels=20)
    with torch.no_grad():
        with fastsr.backend("reference"):
            expected = block(x)
        with fastsr.backend("cuda"):
            y = block(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
