"""fastsr.patch.accelerate against networks that plain PyTorch code built (tests/plain_nets.py)."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import plain_nets as plain
import pytest
import torch
import torch.nn.functional as F
from accelerate_checks import COUNTS, SMALL, assert_within_twice, build, image, reason, results
from torch import Tensor, nn

import fastsr
from fastsr.patch import AccelerateReport, accelerate

WEIGHTS = Path(__file__).parents[2] / "shared" / "weights"


@pytest.fixture(params=SMALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# ---- what is swapped, and that it computes the same


def test_counts(name: str) -> None:
    report = accelerate(build(name))
    assert Counter(report.swapped.values()) == COUNTS[name]
    assert report.kept == {}


def test_outputs_and_gradients_within_twice_the_plain_error(name: str) -> None:
    net = build(name)
    exact = results(copy.deepcopy(net).double(), image().double())
    slow = results(net, image())
    accelerate(net)
    assert_within_twice(results(net, image()), slow, exact)


def test_parts_are_fastsr_modules_with_all_attributes_of_constructed_ones(name: str) -> None:
    net = build(name)
    constructed = {
        "ALKDB": fastsr.nn.ALKDB(),
        "ESDB": fastsr.nn.ESDB(),
        "RLFB": fastsr.nn.RLFB(),
        "ALKConv": fastsr.nn.ALKConv(8, 8),
        "BSConvU": fastsr.nn.BSConvU(8, 8),
        "MLRB": fastsr.nn.MLRB(),
        "PixelShuffleUp": fastsr.nn.PixelShuffleUp(8, 3, 2),
    }
    for path, part in accelerate(net).swapped.items():
        model, swapped = constructed[part], net.get_submodule(path)
        assert isinstance(swapped, type(model))
        for attribute in (*vars(model), *model._modules):
            assert hasattr(swapped, attribute), f"{path} lacks {attribute}"
        if part != "MLRB":  # whose children are named otherwise here
            for child, module in model.named_modules():
                has_kernel = type(module).__module__.startswith("fastsr")
                assert not has_kernel or isinstance(swapped.get_submodule(child), type(module)), child


def test_parameters_and_modules_stay_the_same_objects(name: str) -> None:
    net = build(name).train()
    list(net.parameters())[3].requires_grad_(False)
    modules, parameters = list(net.named_modules()), list(net.named_parameters())
    flags = [(p.requires_grad, p.dtype, p.device) for _, p in parameters]
    assert accelerate(net).swapped
    assert [(key, id(m)) for key, m in net.named_modules()] == [(key, id(m)) for key, m in modules]
    assert [(key, id(p)) for key, p in net.named_parameters()] == [(key, id(p)) for key, p in parameters]
    assert [(p.requires_grad, p.dtype, p.device) for p in net.parameters()] == flags
    assert all(m.training for m in net.modules())
    assert not any(m.training for m in net.eval().modules())


def test_values_random_state_and_threads_are_untouched(name: str) -> None:
    net = build(name)
    before = copy.deepcopy(net.state_dict())
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    accelerate(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_state_dict_round_trip(name: str) -> None:
    source, plain_net, fast = build(name, 1), build(name, 2), build(name, 3)
    accelerate(fast)
    fast.load_state_dict(source.state_dict(), strict=True)
    plain_net.load_state_dict(fast.state_dict(), strict=True)
    torch.testing.assert_close(fast(image()), source(image()), rtol=1e-4, atol=1e-5)
    assert torch.equal(plain_net(image()), source(image()))


def test_an_optimiser_built_before_trains_like_the_plain_network(name: str) -> None:
    fast, slow = build(name).double(), build(name).double()
    losses: list[list[float]] = []
    for net, hurry in ((slow, False), (fast, True)):
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        assert not hurry or accelerate(net).swapped
        losses.append([])
        for _ in range(3):
            optimiser.zero_grad()
            loss = net(image().double()).abs().mean()
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
    assert losses[0][2] != pytest.approx(losses[0][0], rel=1e-3)


def test_a_deepcopy_is_independent(name: str) -> None:
    net = build(name)
    accelerate(net)
    twin = copy.deepcopy(net)
    want = net(image())
    assert torch.equal(twin(image()), want)
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(1.5)
    assert torch.equal(twin(image()), want)
    assert not torch.allclose(net(image()), want)


def test_a_pickled_network_loads(name: str) -> None:
    net = build(name)
    accelerate(net)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(image()), net(image()))


def test_writes_to_data_are_seen(name: str) -> None:
    net, source = build(name, 1), build(name, 2)
    accelerate(net)
    net(image())
    for mine, other in zip(net.parameters(), source.parameters(), strict=True):
        mine.data.mul_(0.5).add_(other.data, alpha=0.5)
    average = build(name, 3)
    average.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(image()), average(image()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", ["cast first", "accelerate first"])
def test_half_precision(name: str, dtype: torch.dtype, order: str) -> None:
    net = build(name).eval()
    with torch.no_grad():
        want = copy.deepcopy(net).to(dtype).double()(image().to(dtype).double())
        if order == "cast first":
            net.to(dtype)
            assert accelerate(net).swapped
        else:
            assert accelerate(net).swapped
            net.to(dtype)
        got = net(image().to(dtype))
        plain_error = (build(name).eval().to(dtype)(image().to(dtype)).double() - want).abs().max()
    assert got.dtype == dtype
    assert all(value.dtype == dtype for value in net.parameters())
    assert float((got.double() - want).abs().max()) <= 2 * float(plain_error) + torch.finfo(dtype).eps


def test_half_precision_keeps_large_features_finite() -> None:
    """The plain attention's sums overflow float16 on this input; fastsr's do not."""
    x = 60 * torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(0)).half()
    torch.manual_seed(0)
    block = plain.DistillationBlock(16).half().eval()
    with torch.no_grad():
        block.c5.weight.mul_(20)
        assert not block(x).isfinite().all()
        accelerate(block)
        assert block(x).isfinite().all()


def test_channels_last_input_and_weights(name: str) -> None:
    net = build(name)
    want = net(image())
    accelerate(net)
    net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(image().to(memory_format=torch.channels_last)), want, rtol=1e-4, atol=1e-5)


def test_a_second_call_swaps_nothing(name: str) -> None:
    net = build(name)
    first = accelerate(net)
    classes = [type(module) for module in net.modules()]
    second = accelerate(net)
    assert second.swapped == {}
    assert second.kept == {path: f"already fastsr's {part}" for path, part in first.swapped.items()}
    assert [type(module) for module in net.modules()] == classes


def test_fastsr_networks_are_left_alone() -> None:
    net = fastsr.ALKDNet(num_feat=16, num_block=1)
    report = accelerate(net)
    assert report.swapped == {}
    assert report.kept["B1"] == "already fastsr's ALKDB"


def test_frozen_networks_and_no_grad(name: str) -> None:
    net = build(name).requires_grad_(False)
    want = net(image())
    with torch.inference_mode():
        assert Counter(accelerate(net).swapped.values()) == COUNTS[name]
    assert not any(value.requires_grad for value in net.parameters())
    torch.testing.assert_close(net(image()), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_default_device_and_forced_backend_of_the_caller(device: str, name: str) -> None:
    net = build(name)
    with torch.device(device), fastsr.backend("cuda"):
        assert Counter(accelerate(net).swapped.values()) == COUNTS[name]
        assert fastsr.current_backend() == "cuda"
    assert fastsr.current_backend() == "auto"


def test_gradients_are_verified_under_inference_mode_too() -> None:
    block = plain.DistillationBlock(16, detach=True)
    with torch.inference_mode():
        assert "gradient of the input differs" in reason(block, "")


def test_initial_zeros_hide_nothing() -> None:
    """With the last convolution zero, this block computes what fastsr's does, until it is trained."""
    block = plain.MixerBlock(8, late_input=False)
    nn.init.zeros_(block.last.weight)
    nn.init.zeros_(block.last.bias)
    assert "its output differs from fastsr's MLRB" in reason(block, "")


def test_a_bare_block_becomes_a_part() -> None:
    block = plain.DistillationBlock(16, 7, True, 1)
    want = block(image(channels=16))
    report = accelerate(block)
    assert report.swapped == {"": "ALKDB"}
    assert isinstance(block, fastsr.nn.ALKDB)
    torch.testing.assert_close(block(image(channels=16)), want, rtol=1e-4, atol=1e-5)


# ---- what structure leaves open


class ByName(nn.Module):
    """A block of its own around a part that it calls by the name of its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = plain.SeparableConv(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(fea=x) + x


def test_the_name_of_the_map_still_holds() -> None:
    net, x = ByName(), image(channels=6)
    want = net(x)
    assert accelerate(net).swapped == {"conv": "BSConvU"}
    for called in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(called(x), want, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError):
        net.conv(feature=x)


def test_a_part_of_a_block_that_is_swapped_later_has_no_hook_left() -> None:
    block = plain.DistillationBlock(16)
    assert accelerate(block.c1_r).swapped == {"": "BSConvU"}
    assert len(block.c1_r._forward_pre_hooks) == 1
    assert accelerate(block).swapped == {"": "ESDB"}
    assert not any(module._forward_pre_hooks for name, module in block.named_modules() if name)
    x = image(channels=16)
    assert torch.equal(block(input=x), block(x))


def test_the_attention_of_a_swapped_block_by_itself() -> None:
    block, x = plain.DistillationBlock(16), image(channels=16)
    want = block.cca(x)
    assert accelerate(block).swapped == {"": "ESDB"}
    torch.testing.assert_close(block.cca(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("pixel_norm", [False, True])
def test_esa_padding_and_pixel_norm(padding: int, pixel_norm: bool) -> None:
    block = plain.DistillationBlock(16, padding=padding, pixel_norm=pixel_norm).double()
    want = block(image(channels=16).double())
    assert accelerate(block).swapped == {"": "ESDB"}
    torch.testing.assert_close(block(image(channels=16).double()), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("act", ["gelu", "leaky"])
@pytest.mark.parametrize("mixer", ["full", "pointwise", "none"])
def test_mixer_block_ablations(act: str, mixer: str) -> None:
    block = plain.MixerBlock(10, act, mixer, padding=1).double()
    want = block(image(channels=10).double())
    assert accelerate(block).swapped == {"": "MLRB"}
    torch.testing.assert_close(block(image(channels=10).double()), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("eps", "tells"), [(1e-6, True), (1e-5, True), (3e-6, True), (1e-6, False), (1e-5, False)])
def test_eps_of_norms(eps: float, tells: bool) -> None:
    torch.manual_seed(0)
    norm = {"norm": plain.ChannelNorm, "eps": eps, "tells_eps": tells}
    for module in (
        plain.ChannelNorm(8, eps, tells),
        plain.LargeKernelConv(8, 8, 5, **norm),
        plain.DistillationBlock(8, 5, True, 1, **norm),
    ):
        module.double()
        x = 1e-3 * image(channels=8).double()  # small, so that eps matters
        want = module(x)
        assert "" in accelerate(module).swapped
        torch.testing.assert_close(module(x), want, rtol=1e-9, atol=1e-12)


def test_an_eps_that_is_neither_told_nor_usual_is_kept() -> None:
    assert "output differs" in reason(plain.ChannelNorm(8, 3e-6, tells_eps=False), "")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_separable_convolutions_of_any_stride_and_padding(stride: int, padding: int) -> None:
    conv = plain.SeparableConv(5, 8, stride, padding)
    want = conv(image(channels=5))
    assert accelerate(conv).swapped == {"": "BSConvU"}
    torch.testing.assert_close(conv(image(channels=5)), want)


# ---- the report, and official weights


def test_report_reads_well() -> None:
    net = build("bsrn")
    net.B2.register_forward_hook(lambda *_: None)
    report = accelerate(net)
    lines = str(report).splitlines()
    assert lines[0] == f"BSRN: {len(report.swapped)} parts swapped, 2 kept; the network's own forward stays"
    assert "  swapped  ESDB            B1" in lines
    assert any(line.startswith("  kept     B2: looks like ESDB, but it has a forward hook") for line in lines)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.swapped = {}
    assert str(AccelerateReport({"": "ALKDB"}, {}, "Block")).startswith("Block: 1 part swapped, 0 kept\n")


@pytest.mark.parametrize(("net", "given"), [({}, "a dict"), (None, "a NoneType"), (plain.BSRN, "the class BSRN")])
def test_other_arguments(net: object, given: str) -> None:
    with pytest.raises(fastsr.InputError, match=rf"net is {given}; pass a network, an instance of torch.nn.Module"):
        accelerate(net)


OFFICIAL: dict[str, Callable[[], nn.Module]] = {
    "net_g_ALKDN_x2": lambda: plain.ALKDN(2),
    "net_g_BSRN_x4": lambda: plain.BSRN(4),
    "rlfn_x2": lambda: plain.RLFN(2),
    "rlfn_ntire_x4": lambda: plain.RLFN(4, 46, 4, mid=48),
}


@pytest.mark.parametrize("checkpoint", OFFICIAL)
def test_official_weights_give_the_same_image(checkpoint: str) -> None:
    file = WEIGHTS / f"{checkpoint}.pth"
    if not file.exists():
        pytest.skip(f"the official weights are not at {WEIGHTS}")
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    net = OFFICIAL[checkpoint]().eval()
    net.load_state_dict(loaded.get("params", loaded), strict=True)
    white = 255 if checkpoint.startswith("rlfn") else 1
    x = white * F.interpolate(image(1, 8, 9), (24, 27), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
        slow = net(x)
        report = accelerate(net)
        fast = net(x)
    assert report.kept == {}
    assert_within_twice({"output": fast}, {"output": slow}, {"output": exact})
