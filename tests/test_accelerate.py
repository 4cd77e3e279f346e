"""fastsr.patch.accelerate against networks that plain PyTorch code built (tests/plain_nets.py)."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import plain_nets as plain
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastsr
from fastsr.patch import AccelerateReport, accelerate

WEIGHTS = Path(__file__).parents[2] / "shared" / "weights"

SMALL: dict[str, Callable[[], nn.Module]] = {
    "alkdn": lambda: plain.ALKDN(2, 16, 2, 5),
    "bsrn": lambda: plain.BSRN(3, 16, 2),
    "rlfn": lambda: plain.RLFN(2, 12, 2, mid=14),
    "mlrn": lambda: plain.MLRN(2, 12, 2),
}
COUNTS = {
    "alkdn": {"ALKDB": 2, "BSConvU": 1, "ALKConv": 1},
    "bsrn": {"ESDB": 2, "BSConvU": 2, "PixelShuffleUp": 1},
    "rlfn": {"RLFB": 2, "PixelShuffleUp": 1},
    "mlrn": {"MLRB": 2, "PixelShuffleUp": 1},
}


@pytest.fixture(params=SMALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SMALL[name]()


def image(n: int = 2, h: int = 19, w: int = 26, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, h, w, generator=torch.Generator().manual_seed(5))


def results(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and all gradients of a loss that weighs every output differently."""
    x = x.clone().requires_grad_(True)
    net.zero_grad(set_to_none=True)
    y = net(x)
    weights = torch.rand(y.shape, generator=torch.Generator().manual_seed(6))
    (y * weights.to(y)).mean().backward()
    grads = {key: value.grad.clone() for key, value in net.named_parameters()}
    return {"output": y.detach(), "input": x.grad, **grads}


def assert_within_twice(fast: dict[str, Tensor], slow: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Maximum errors against float64 are at most twice those of the plain network."""
    assert fast.keys() == slow.keys() == exact.keys()
    for key, want in exact.items():
        error, allowed = (float((got[key].double() - want).abs().max()) for got in (fast, slow))
        floor = 4 * torch.finfo(fast[key].dtype).eps * float(want.abs().max())
        assert error <= 2 * allowed + floor, f"{key}: {error:.2e} against {allowed:.2e}"


def reason(net: nn.Module, path: str) -> str:
    """Why `path` was kept."""
    report = accelerate(net)
    assert path in report.kept, str(report)
    assert path not in report.swapped
    return report.kept[path]


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


# ---- what is kept


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"residual": False}, "output differs from fastsr's ESDB"),
        ({"act": nn.ReLU()}, "output differs from fastsr's ESDB"),
        ({"act": nn.GELU("tanh")}, "output differs from fastsr's ESDB"),
        ({"act": nn.PReLU()}, "extra child act has parameters"),
        ({"dropout": 0.1}, "output in training mode differs"),
        ({"detach": True}, "gradient of the input differs"),
    ],
)
def test_same_children_but_another_forward(change: dict[str, object], what: str) -> None:
    net = plain.BSRN(2, 16, 2)
    net.B2 = plain.DistillationBlock(16, **change)
    want = net.eval()(image())
    report = accelerate(net)
    assert what in report.kept["B2"]
    assert report.swapped["B1"] == "ESDB"
    assert report.swapped["B2.c1_r"] == "BSConvU"  # its parts are swapped all the same
    assert report.swapped["B2.esa"] == "BlueprintESA"
    assert "only as the end of a whole block" in report.kept["B2.cca"]
    torch.testing.assert_close(net(image()), want, rtol=1e-4, atol=1e-5)


def test_other_residual_and_attention_forwards() -> None:
    assert "output differs from fastsr's RLFB" in reason(plain.ResidualBlock(8, slope=0.1), "")
    assert "output differs from fastsr's PlainESA" in reason(plain.DenseESA(8, align_corners=True), "")


class Odd(nn.Module):
    """A separable convolution with one thing changed."""

    def __init__(self, **changes: object) -> None:
        super().__init__()
        self.pw = nn.Conv2d(6, 6, 1, bias="pw_bias" in changes)
        conv = {"padding": 1, "groups": 6, **{k: v for k, v in changes.items() if k != "pw_bias"}}
        self.dw = nn.Conv2d(6, 6, 3, **conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.dw(self.pw(x))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"dilation": 2}, "dw has dilation (2, 2), not (1, 1)"),
        ({"padding_mode": "reflect"}, "dw has padding_mode reflect, not zeros"),
        ({"groups": 3}, "dw has groups 3, not 6"),
        ({"stride": (1, 2)}, "dw has stride (1, 2), not (1, 1)"),
        ({"padding": "same"}, "dw has padding same"),
        ({"bias": False}, "dw has no bias"),
        ({"pw_bias": True}, "pw has a bias"),
    ],
)
def test_unusual_convolutions(changes: dict[str, object], what: str) -> None:
    assert what in reason(Odd(**changes), "")


def test_convolutions_with_a_class_of_their_own() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    class Plain(nn.Conv2d):
        pass

    module = Odd()
    module.pw = Scaled(6, 6, 1, bias=False)
    assert "pw is a Scaled, not a plain Conv2d" in reason(module, "")
    module.pw = Plain(6, 6, 1, bias=False)
    assert accelerate(module).swapped == {"": "BSConvU"}


@pytest.mark.parametrize("wrap", ["parametrization", "weight_norm hook", "spectral_norm"])
def test_reparametrized_convolutions(wrap: str) -> None:
    net = build("alkdn")
    conv = net.B1.c1_r.small_conv
    if wrap == "parametrization":
        parametrizations.weight_norm(conv)
    elif wrap == "spectral_norm":
        parametrizations.spectral_norm(conv)
    else:
        conv.register_parameter("weight_g", nn.Parameter(torch.ones(1)))
        conv.register_forward_pre_hook(lambda module, _: None)
    want = net.eval()(image())
    report = accelerate(net)
    assert "small_conv" in report.kept["B1"]
    assert "small_conv" in report.kept["B1.c1_r"]
    assert report.swapped["B1.c2_r"] == "ALKConv"
    torch.testing.assert_close(net(image()), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
@pytest.mark.parametrize("where", ["B1", "B1.c1_d", "B1.esa.maxPooling"])
def test_hooks_keep_a_block_and_still_run(register: str, where: str) -> None:
    net = build("bsrn")
    calls: list[str] = []
    getattr(net.get_submodule(where), register)(lambda *_: calls.append(where))
    report = accelerate(net)
    assert "hook" in report.kept["B1"]
    assert report.swapped["B2"] == "ESDB"
    assert report.swapped["B1.c1_r"] == "BSConvU"
    assert calls == []
    net(image()).sum().backward()
    assert calls == [where]


def test_after_its_hook_is_gone_a_block_is_swapped() -> None:
    net = build("bsrn")
    want = net(image())
    handle = net.B1.c5.register_forward_hook(lambda *_: None)
    assert "B1" in accelerate(net).kept
    handle.remove()
    assert accelerate(net).swapped == {"B1": "ESDB"}
    torch.testing.assert_close(net(image()), want, rtol=1e-4, atol=1e-5)


def test_buffers_and_extra_parameters() -> None:
    with_buffer, with_parameter, with_norm = (plain.MixerBlock(8) for _ in range(3))
    with_buffer.register_buffer("steps", torch.zeros(1))
    with_parameter.scale = nn.Parameter(torch.ones(1))
    with_norm.normalise = nn.BatchNorm2d(8)
    assert "steps" in reason(with_buffer, "")
    assert "scale" in reason(with_parameter, "")
    assert "normalise has parameters or buffers" in reason(with_norm, "")


def test_children_shared_with_another_block() -> None:
    net = plain.BSRN(2, 16, 3)
    net.B2.cca = net.B1.cca
    want = net(image())
    report = accelerate(net)
    for path in ("B1", "B2"):
        assert "its child cca is also a child of a module outside" in report.kept[path]
    assert report.swapped["B3"] == "ESDB"
    torch.testing.assert_close(net(image()), want, rtol=1e-4, atol=1e-5)


def test_a_block_used_in_several_places_is_swapped_once() -> None:
    net = plain.BSRN(2, 16, 3)
    net.B3 = net.B1
    want = net(image())
    report = accelerate(net)
    assert Counter(report.swapped.values()) == COUNTS["bsrn"]
    assert report.kept == {}
    assert net.B3 is net.B1
    assert isinstance(net.B3, fastsr.nn.ESDB)
    torch.testing.assert_close(net(image()), want, rtol=1e-4, atol=1e-5)


def test_failing_and_unusual_forwards() -> None:
    class Failing(Odd):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not today")

    class TwoInputs(Odd):
        def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
            return super().forward(x)

    class Pair(Odd):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, super().forward(x)

    class Loads(Odd):
        def _load_from_state_dict(self, *args: object) -> None:
            super()._load_from_state_dict(*args)

    patched = Odd()
    patched.forward = lambda x: x
    uncopyable = Odd()
    uncopyable.last = uncopyable.dw.weight * 2
    assert "ValueError: not today" in reason(Failing(), "")
    assert "its forward takes (x, skip), not one tensor" in reason(TwoInputs(), "")
    assert "it returns a tuple, not a tensor" in reason(Pair(), "")
    assert "defines _load_from_state_dict itself" in reason(Loads(), "")
    assert "has a forward set on the instance" in reason(patched, "")
    assert "cannot be copied" in reason(uncopyable, "")


def test_parameters_that_cannot_be_verified() -> None:
    with torch.device("meta"):
        assert "meta device" in reason(plain.BSRN(2, 16, 1), "B1")
    lazy = Odd()
    lazy.pw = nn.LazyConv2d(6, 1, bias=False)
    assert "not initialised" in reason(lazy, "")
    mixed = Odd()
    mixed.dw.half()
    assert "float16 on cpu and float32 on cpu" in reason(mixed, "")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_modules() -> None:
    net = nn.Sequential(torch.jit.script(plain.SeparableConv(6, 6)), plain.SeparableConv(6, 6))
    report = accelerate(net)
    assert "torch.jit" in report.kept["0"]
    assert report.swapped == {"1": "BSConvU"}


def test_torch_norms_on_the_last_dimension_are_no_parts() -> None:
    class Permuting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    report = accelerate(Permuting())
    assert report.swapped == report.kept == {}


def test_role_names_taken_by_other_children() -> None:
    class Confusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c2_r = nn.Conv2d(8, 8, 3, padding=1)  # runs first
            self.c1_r = nn.Conv2d(8, 8, 3, padding=1)
            self.c5 = nn.Conv2d(8, 8, 1)
            self.esa = plain.DenseESA(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.esa(self.c5(F.gelu(self.c1_r(F.gelu(self.c2_r(x)))) + x))

    class Impossible(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c1_r = nn.Conv2d(8, 8, 3, padding=1)
            self.c5 = nn.Conv2d(8, 8, 3, padding=1)
            self.fuse = nn.Conv2d(8, 8, 1)
            self.esa = plain.DenseESA(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.esa(self.fuse(F.gelu(self.c5(F.gelu(self.c1_r(x)))) + x))

    assert "differs from fastsr's MLRB" in reason(Confusing(), "")
    assert "its child c5 has the name of another child of fastsr's MLRB" in reason(Impossible(), "")


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
