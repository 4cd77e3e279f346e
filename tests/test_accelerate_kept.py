"""What accelerate leaves as it is, with the reason."""

from __future__ import annotations

from collections import Counter

import plain_nets as plain
import pytest
import torch
import torch.nn.functional as F
from accelerate_checks import COUNTS, build, image, reason
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastsr
from fastsr.patch import accelerate

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


@pytest.mark.parametrize("where", ["eval", "train", "both"])
def test_forwards_that_change_their_input(where: str) -> None:
    class InPlace(Odd):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if where in ("both", "train" if self.training else "eval"):
                x.mul_(2)
            return y

    assert "changes its input in place" in reason(InPlace(), "")


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
