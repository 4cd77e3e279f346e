"""How many kernels a forward pass starts, and that what is fused for that computes what the networks do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import simulator
import torch
from kernel_checks import assert_network_within_twice, device_of, feature_map, moved
from pretended_gpu import pretended_gpu
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastsr
from fastsr.nn import ALKDB, ESDB, MLRB, RLFB

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DEVICE = device_of("cuda")
simulated_only = pytest.mark.skipif(DEVICE == "cuda", reason="it is the simulator that counts")


# What ends in fewer kernels, with c4, with c5 of several maps and of one.
BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "alkdb": lambda c: ALKDB(c, lk_size=5, esa_channels=8),
    "esdb": lambda c: ESDB(c, esa_channels=8),
    "rlfb": lambda c: RLFB(c, esa_channels=8),
    "mlrb": lambda c: MLRB(c, esa_channels=8, conv_mix=False),
}
by_block = pytest.mark.parametrize("name", BLOCKS)


class Launches(TorchDispatchMode):
    """Counts the simulated kernels, and PyTorch's own operators that are no views as one kernel each."""

    def __init__(self) -> None:
        super().__init__()
        self.of_pytorch = 0
        self._before = simulator.launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if func.namespace == "aten" and not is_view and not func.__name__.startswith("empty"):
            self.of_pytorch += 1
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        return simulator.launches - self._before + self.of_pytorch


def network(name: str, **options: Any) -> nn.Module:
    """All blocks, few channels: launches do not depend on their number."""
    torch.manual_seed(0)
    return fastsr.create_model(name, scale=2, num_feat=16, esa_channels=8, **options).eval()


# Whoever forces nothing gets the same kernels: the simulated GPU can run Triton's, too, as far as the choice goes.
CHOICES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "forced": lambda: fastsr.backend("cuda"),
    "default": pretended_gpu,
}
by_choice = pytest.mark.parametrize("choice", CHOICES)


def launches(module: nn.Module, choice: str, *, channels: int = 3, layout: str = "nhwc", autocast: bool = False) -> int:
    x = feature_map((1, channels, 16, 17), layout).sigmoid()
    with CHOICES[choice](), torch.no_grad(), torch.autocast("cpu", BFLOAT, enabled=autocast), Launches() as found:
        module(x)
    return found.count


def frozen(net: nn.Module) -> nn.Module:
    with fastsr.backend("cuda"):
        return fastsr.freeze(net)


@simulated_only
@by_choice
def test_mlrn(choice: str) -> None:
    """Three convolutions around six blocks of two convolutions, the mixer with conv1, the small map and the gate."""
    net = network("mlrn")
    assert launches(net, choice) == launches(frozen(net), choice) == 33 <= 40


@simulated_only
@by_choice
def test_mlrn_without_its_mixer(choice: str) -> None:
    """A block: two convolutions, c5 with conv1, the small map, the gate; packing where it is not frozen."""
    net = network("mlrn", conv_mix=False)
    assert (launches(frozen(net), choice), launches(net, choice)) == (33, 39)


@simulated_only
@by_choice
def test_rlfn(choice: str) -> None:
    """A block: three convolutions, c5 with conv1, the small map, the gate; packing where it is not frozen."""
    net = network("rlfn")
    assert (launches(frozen(net), choice), launches(net, choice)) == (39, 45)


@simulated_only
@by_choice
def test_alkdnet(choice: str) -> None:
    """Eight blocks, the head, the trunk's 1x1 and its packing, c2, the shallow features' addition, the tail.

    Where it is not frozen, one for packing all of the blocks' and c2's weights, and one for concatenating images.
    """
    net = network("alkdnet")
    counts = (launches(frozen(net), choice), launches(net, choice))
    assert counts == (62, 64) and max(counts) <= 64


@simulated_only
@by_choice
def test_alkdnet_with_larger_kernels(choice: str) -> None:
    """One more a block, as the condensation takes nine taps, and, not frozen, another that packs c5 with conv1."""
    net = network("alkdnet", lk_size=11)
    assert (launches(frozen(net), choice), launches(net, choice)) == (70, 80)


@simulated_only
@by_choice
def test_bsrn(choice: str) -> None:
    """A block: three stages, c4, c5 with conv1, the small map, the gate, the attention.

    Where it is not frozen, packing, and one for concatenating images.
    """
    net = network("bsrn")
    assert (launches(frozen(net), choice), launches(net, choice)) == (69, 78)


@simulated_only
@pytest.mark.parametrize(
    ("name", "counts"), [("mlrn", (33, 33)), ("rlfn", (39, 45)), ("alkdnet", (62, 64)), ("bsrn", (69, 78))]
)
def test_an_image_in_nchw_is_copied_in_and_out(name: str, counts: tuple[int, int]) -> None:
    """Of which MLRN and a frozen ALKDNet keep their limits of 40 and 64."""
    net = network(name)
    found = [launches(n, "default", layout="nchw") for n in (frozen(net), net)]
    assert found == [count + 2 for count in counts]
    assert found[0] <= {"mlrn": 40, "alkdnet": 64}.get(name, found[0])


@simulated_only
@pytest.mark.parametrize(
    ("name", "counts"), [("mlrn", (36, 36)), ("rlfn", (46, 46)), ("alkdnet", (97, 98)), ("bsrn", (78, 79))]
)
def test_autocast(name: str, counts: tuple[int, int]) -> None:
    """Beside maps of half precision parameters of float32 are packed one by one, and nothing is packed for good."""
    net = network(name)
    assert (launches(frozen(net), "default", autocast=True), launches(net, "default", autocast=True)) == counts


@simulated_only
@by_choice
def test_blocks(choice: str) -> None:
    """Three stages, the condensation, the small map, the gate, the attention; packing where it is not frozen."""
    block = ALKDB(16, esa_channels=8).requires_grad_(False)
    assert launches(block, choice, channels=16) == 1 + 7
    with fastsr.backend("cuda"):
        block.pack()
    assert launches(block, choice, channels=16) == 7


@by_block
@pytest.mark.parametrize("dtype", (FLOAT, HALF, BFLOAT), ids=str)
@pytest.mark.parametrize("frozen", (False, True), ids=("unfrozen", "frozen"))
def test_a_fused_block_is_within_twice_the_error_of_pytorch(frozen: bool, dtype: torch.dtype, name: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name](40).to(DEVICE, dtype).requires_grad_(False)
    x = moved(feature_map((2, 40, 18, 17), "nhwc", dtype), DEVICE)
    with torch.no_grad():
        with fastsr.backend("reference"):
            plain, exact = block(x), block.double()(x.double())
        block.to(dtype)
        with fastsr.backend("cuda"):
            if frozen:
                block.pack()
                assert block.packed is not None
            y = block(x)
    assert (y.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()


@by_block
def test_a_block_that_is_trained_is_not_fused(name: str) -> None:
    torch.manual_seed(0)
    assert_network_within_twice(BLOCKS[name](16), feature_map((1, 16, 16, 15), "nchw"), "cuda")


@pytest.mark.parametrize(
    ("name", "part"), (("alkdb", "esa"), ("alkdb", "cca"), ("alkdb", "c4"), ("esdb", "c4"), ("rlfb", "esa"))
)
def test_hooks_see_what_they_would(name: str, part: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name](16).to(DEVICE).requires_grad_(False)
    x = moved(feature_map((1, 16, 16, 15), "nhwc"), DEVICE)
    seen: list[tuple[Tensor, Tensor]] = []
    with fastsr.backend("cuda"), torch.no_grad():
        block.pack()
        expected = block(x)
        handle = getattr(block, part).register_forward_hook(lambda _, given, y: seen.append((given[0], y)))
        y = block(x)
        handle.remove()
    assert len(seen) == 1 and seen[0][0].shape[2:] == seen[0][1].shape[2:] == x.shape[2:]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@by_block
def test_a_fused_block_compiles_in_one_graph(name: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name](16).requires_grad_(False).to(DEVICE)
    x = moved(feature_map((1, 16, 16, 15), "nhwc"), DEVICE)
    with fastsr.backend("cuda"), torch.no_grad():
        for _ in range(2):
            expected = block(x)
            compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(x), expected)
            torch.compiler.reset()
            block.pack()
