"""Maps that attention writes over in inference: same results, and never where somebody may still look."""

from __future__ import annotations

from typing import Any

import kernel_checks
import pytest
import torch
from operator_cases import build
from torch import Tensor, nn

import fastsr
from fastsr import nn as parts
from fastsr import ops
from fastsr.reference import BlueprintESAWeights, PlainESAWeights

pytestmark = pytest.mark.usefixtures("cpu_kernels")


def esa(x: Tensor, weights: dict[str, Tensor], **options: Any) -> Tensor:
    form = PlainESAWeights if len(weights) == len(PlainESAWeights._fields) else BlueprintESAWeights
    return ops.esa(x, form(**weights), conv2_padding=1, **options)


def cca(x: Tensor, tensors: dict[str, Tensor], **options: Any) -> Tensor:
    return ops.cca_norm(x, **tensors, **options)


CALLS = {"esa_plain": esa, "esa_blueprint": esa, "cca_norm": cca}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_the_result_is_the_same_and_takes_the_place_of_the_input(cpu_isa: str, name: str, dtype: torch.dtype) -> None:
    for shape in ((2, 17, 24, 61), (1, 58, 20, 19)):
        tensors = build(name, shape, dtype=dtype).tensors
        x = tensors.pop("x")
        expected = CALLS[name](x, tensors)
        y = CALLS[name](x, tensors, overwrite=True)
        assert y is x and torch.equal(y, expected)


@pytest.mark.parametrize("name", CALLS)
def test_other_layouts_and_autograd_keep_the_input(name: str) -> None:
    for layout in ("nchw", "channel_slice", "expanded"):
        tensors = build(name, (2, 12, 24, 27), layout).tensors
        x = tensors.pop("x")
        before = x.clone()
        CALLS[name](x, tensors, overwrite=True)
        assert torch.equal(x, before)
    tensors = build(name).tensors
    x = tensors.pop("x").requires_grad_()
    assert CALLS[name](x, tensors, overwrite=True) is not x


def test_packed_weights() -> None:
    for name in ("esa_plain", "esa_blueprint"):
        tensors = build(name).tensors
        x = tensors.pop("x")
        form = PlainESAWeights if name == "esa_plain" else BlueprintESAWeights
        packed = ops.pack_esa(form(**tensors))
        expected = esa(x, tensors, packed=packed)
        assert esa(x, tensors, packed=packed, overwrite=True) is x and torch.equal(x, expected)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("size", ((24, 25), (5, 4)), ids=("winograd", "direct"))
@pytest.mark.parametrize("channels", (58, 16, 3))
def test_a_convolution_takes_the_place_of_its_shortcut(
    cpu_isa: str, channels: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    """58 channels: no vector may be finished twice, as usually the last one and its neighbour overlap."""
    tensors = build("conv3x3_gelu", (2, 17, *size), dtype=dtype).tensors
    x = tensors["x"]
    w, b = kernel_checks.weight(channels, 17, 3, 3, dtype=dtype), kernel_checks.weight(channels, dtype=dtype)
    shortcut = torch.randn(2, channels, *size).to(dtype, memory_format=torch.channels_last)
    expected = ops.conv3x3_gelu(x, w, b, shortcut=shortcut)
    for packed in (None, ops.pack_conv3x3_gelu(w, b)):
        target = shortcut.clone()
        y = ops.conv3x3_gelu(x, w, b, shortcut=target, packed=packed, overwrite=True)
        assert y is target and torch.equal(y, expected)
    kept = shortcut.contiguous().requires_grad_()
    assert ops.conv3x3_gelu(x, w, b, shortcut=kept, overwrite=True) is not kept


def test_a_convolution_does_not_write_over_what_it_reads() -> None:
    x = torch.rand(1, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="x itself is to be written over"):
        ops.conv3x3_gelu(x, torch.rand(8, 8, 3, 3), torch.rand(8), shortcut=x, overwrite=True)


@pytest.mark.parametrize("name", ("alkdnet", "bsrn", "mlrn", "rlfn"))
def test_hooks_see_what_was_there(name: str) -> None:
    """Inputs and outputs of every module, as a feature extractor keeps them, are those of a run with autograd."""
    net = fastsr.create_model(name, scale=2, num_block=2).eval()
    x = torch.rand(1, 3, 24, 25)
    seen: list[list[tuple[str, Tensor]]] = []
    names = {module: path for path, module in net.named_modules()}

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen[-1] += [(names[module], t) for t in (*inputs, output) if isinstance(t, Tensor)]

    handles = [module.register_forward_hook(hook) for module in net.modules()]
    for inference in (False, True):
        seen.append([])
        with torch.set_grad_enabled(not inference):
            net(x)
    for handle in handles:
        handle.remove()
    assert len(seen[0]) == len(seen[1]) > 4
    for (path, a), (_, b) in zip(*seen, strict=True):
        torch.testing.assert_close(b, a.detach(), msg=lambda text, path=path: f"{path}: {text}")


def test_another_module_in_the_place_of_the_attention() -> None:
    net = fastsr.create_model("mlrn", scale=2, num_block=1).eval()
    block = net.block_1
    assert isinstance(block, parts.MLRB)
    block.esa = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        assert net(torch.rand(1, 3, 24, 25)).isfinite().all()


def test_direct_calls_refuse_other_layouts() -> None:
    tensors = build("cca_norm", layout="nchw").tensors
    with pytest.raises(RuntimeError, match="channels last"):
        torch.ops.fastsr.cca_norm_(*tensors.values(), 1e-5)


def test_maps_are_added_up_in_pairs_without_autograd() -> None:
    """The fusion of all block outputs in inference, against the one product that training takes."""
    for blocks in (1, 2, 3, 4, 5):
        net = fastsr.create_model("bsrn", scale=2, num_block=blocks, num_feat=16).eval()
        x = torch.rand(1, 3, 20, 21)
        with torch.no_grad():
            y = net(x)
        torch.testing.assert_close(y, net(x).detach())
