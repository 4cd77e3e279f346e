"""The networks: published figures, ablations, arguments, input checks."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import plain_nets
import pytest
import torch

import fastsr

PARAMETERS = {
    ("alkdnet", 2): 372_716,
    ("alkdnet", 3): 381_371,
    ("alkdnet", 4): 393_488,
    ("mlrn", 2): 487_838,
    ("mlrn", 3): 495_683,
    ("mlrn", 4): 506_666,
    ("bsrn", 2): 331_628,
    ("rlfn", 2): 526_856,
    ("rlfn", 4): 543_740,
    ("rlfn_ntire", 4): 317_218,
}


@pytest.mark.parametrize(("name", "scale"), PARAMETERS)
def test_parameter_counts(name: str, scale: int) -> None:
    net = fastsr.create_model(name, scale=scale)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name, scale]


def test_challenge_variant_counts_as_published() -> None:
    """MLRN, table 3: 0.275 M parameters, 16.85 G multiply-adds, 97.87 M activations, 43 convolutions."""
    net = fastsr.create_model("mlrn_ntire", scale=4)
    assert net.input_range == 255.0
    counts = fastsr.complexity(net, 256, 256)
    assert counts == fastsr.Complexity(274_710, 16_854_452_224, 97_870_976, 43)


@pytest.mark.parametrize(("scale", "giga"), [(2, 106.3), (3, 48.1), (4, 27.7)])
def test_multiply_adds_of_mlrn_at_720p(scale: int, giga: float) -> None:
    net = fastsr.create_model("mlrn", scale=scale)
    assert round(fastsr.complexity(net, 720 // scale, round(1280 / scale)).macs / 1e9, 1) == giga


def test_complexity_of_something_else() -> None:
    with pytest.raises(fastsr.InputError, match=r"complexity: net is a str; pass a network"):
        fastsr.complexity("x")  # type: ignore[arg-type]
    assert fastsr.complexity(torch.nn.ReLU(), 4, 4) == fastsr.Complexity(0, 0, 0, 0)


def test_complexity_leaves_the_network_alone_and_counts_a_plain_one() -> None:
    net = fastsr.create_model("alkdnet", num_block=1).half().train()
    before = copy.deepcopy(net.state_dict())
    fastsr.complexity(net, 20, 20)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.Conv2d(4, 8, 1, groups=2))
    assert fastsr.complexity(plain, 10, 6) == fastsr.Complexity(
        3 * 4 * 9 + 4 + 8 * 2 + 8, 15 * (4 * 27 + 16), 15 * 12, 2
    )


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        # ALKDNet, table 1: each step of the kernel adds 2 x 2 taps to (3 x 64 + 32) channels of 8 blocks
        ({"lk_size": 5}, 372_716 - 2 * 8 * (3 * 64 + 32) * 4),
        ({"lk_size": 7}, 372_716 - 8 * (3 * 64 + 32) * 4),
        ({"lk_size": 11}, 372_716 + 8 * (3 * 64 + 32) * 4),
        # table 3: without pixel norm
        ({"pixel_norm": False}, 372_716 - 8 * 2 * 64),
        # table 2: residuals have no parameters
        ({"feature_residual": False}, 372_716),
        ({"anchor_residual": False}, 372_716),
        # the baseline's convolution: BSRN and ALKDNet's pixel norm
        ({"conv": "BSConvU"}, 331_628 + 8 * 2 * 64),
        ({"conv": "BSConvU", "pixel_norm": False}, 331_628),
    ],
)
def test_ablations_of_alkdnet(settings: dict[str, Any], parameters: int) -> None:
    net = fastsr.create_model("alkdnet", scale=2, **settings)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({"conv_mix": False}, 487_838 - 6 * (58 * 9 + 58 + 58 * 58 + 58)),
        ({"depthwise_conv": False}, 487_838 - 6 * (58 * 9 + 58)),
        ({"activation": "leaky_relu"}, 487_838),
        ({"bilinear": False}, 487_838),
    ],
)
def test_ablations_of_mlrn(settings: dict[str, Any], parameters: int) -> None:
    net = fastsr.create_model("mlrn", scale=2, **settings)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("alkdnet", {"feature_residual": False}),
        ("alkdnet", {"anchor_residual": False}),
        ("alkdnet", {"pixel_norm": False}),
        ("alkdnet", {"conv": "BSConvU"}),
        ("mlrn", {"conv_mix": False}),
        ("mlrn", {"depthwise_conv": False}),
        ("mlrn", {"activation": "leaky_relu"}),
        ("mlrn", {"bilinear": False}),
    ],
)
def test_every_ablation_changes_the_output(name: str, settings: dict[str, Any]) -> None:
    full, ablated = (fastsr.create_model(name, num_block=1, num_feat=8, **s) for s in ({}, settings))
    shared_weights = {k: v for k, v in full.state_dict().items() if k in ablated.state_dict()}
    ablated.load_state_dict(shared_weights, strict=False)
    x = torch.rand(1, 3, 16, 17)
    with torch.no_grad():
        assert not torch.allclose(full(x), ablated(x), atol=1e-4)


@pytest.mark.parametrize("name", fastsr.list_models())
@pytest.mark.parametrize("scale", (1, 2, 3, 4))
def test_output_shape_gradients_and_no_unused_parameter(name: str, scale: int) -> None:
    net = fastsr.create_model(name, scale=scale, num_block=1)
    y = net(torch.rand(2, 3, 16, 19))
    assert y.shape == (2, 3, 16 * scale, 19 * scale)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ("alkdnet", "bsrn", "mlrn", "rlfn"))
def test_smallest_image(name: str) -> None:
    net = fastsr.create_model(name, num_block=1)
    least = {"alkdnet": 13}.get(name, 15)
    assert net.min_size == least
    assert net(torch.rand(1, 3, least, least)).isfinite().all()
    with pytest.raises(
        fastsr.InputError, match=rf"{least + 5}x{least - 1} pixels; this network needs at least {least}x"
    ):
        net(torch.rand(1, 3, least - 1, least + 5))


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.rand(3, 20, 20), r"\(3, 20, 20\); pass a tensor \[N, 3, H, W\]"),
        (torch.rand(1, 4, 20, 20), r"\(1, 4, 20, 20\)"),
        (torch.zeros(1, 3, 20, 20, dtype=torch.uint8), r"uint8; pass floating-point values in 0\.\.1"),
    ],
)
def test_images_that_are_none(image: torch.Tensor, says: str) -> None:
    with pytest.raises(fastsr.InputError, match=says):
        fastsr.create_model("alkdnet", num_block=1)(image)


def test_names_are_forgiving_and_errors_helpful() -> None:
    assert isinstance(fastsr.create_model("ALKDN", num_block=1), fastsr.ALKDNet)
    assert fastsr.create_model("MLRN-NTIRE").scale == 4
    with pytest.raises(fastsr.UnknownModelError, match="'alkdnt'; did you mean 'alkdnet'"):
        fastsr.create_model("alkdnt")
    with pytest.raises(fastsr.InputError, match="'lk_sise'; did you mean 'lk_size'"):
        fastsr.create_model("alkdnet", lk_sise=9)
    with pytest.raises(fastsr.InputError, match="scale is 7; pass one of 1, 2, 3"):
        fastsr.create_model("mlrn", scale=7)
    with pytest.raises(fastsr.InputError, match="scale is 2 and upscale 4"):
        fastsr.ALKDNet(scale=2, upscale=4)
    with pytest.raises(fastsr.InputError, match="lk_size is 4; pass an odd"):
        fastsr.create_model("alkdnet", lk_size=4)
    with pytest.raises(fastsr.InputError, match="conv is 'Conv2d'"):
        fastsr.create_model("alkdnet", conv="Conv2d")
    with pytest.raises(fastsr.InputError, match="anchor residual needs them equal"):
        fastsr.create_model("alkdnet", num_in_ch=1)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("mlrn", {"num_out_ch": 1}, "num_in_ch is 3 and num_out_ch 1; the bilinear residual needs them equal"),
        ("mlrn", {"activation": "relu"}, "activation is 'relu'; pass one of gelu, leaky_relu"),
        ("mlrn", {"esa_channels": 0}, "esa_channels is 0; pass a whole number from 1 on"),
        ("rlfn", {"num_feat": 0}, "num_feat is 0; pass"),
        ("rlfn", {"num_block": -1}, "num_block is -1; pass"),
        ("rlfn", {"mid_channels": 0}, "mid_channels is 0; pass"),
        ("rlfn", {"num_block": True}, "num_block is True; pass"),
        ("rlfn", {"num_feat": 8.0}, "num_feat is 8.0; pass"),
        ("alkdnet", {"num_block": 0}, "num_block is 0; pass"),
        ("alkdnet", {"num_feat": 1}, "num_feat is 1; pass an even number"),
        ("alkdnet", {"lk_size": -1}, "lk_size is -1; pass"),
        ("bsrn", {"num_block": 0}, "num_block is 0; pass"),
        ("bsrn", {"num_feat": 7}, "num_feat is 7; pass an even number"),
        ("bsrn", {"num_in_ch": 0}, "num_in_ch is 0; pass"),
        ("bsrn", {"input_range": float("nan")}, "input_range is nan; pass the value of white"),
        ("bsrn", {"input_range": float("inf")}, "input_range is inf; pass the value of white"),
        ("bsrn", {"input_range": "1"}, "input_range is '1'; pass the value of white"),
    ],
)
def test_settings_that_no_network_has(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(fastsr.InputError, match=re.escape(says)):
        fastsr.create_model(name, **settings)


def test_upscale_and_scale_are_one_argument() -> None:
    assert fastsr.ALKDNet(upscale=3, num_block=1).scale == fastsr.ALKDNet(scale=3, num_block=1).scale == 3


PLAIN_NAMES_OF_MLRN = (
    (r"^conv_1\.", "head."),
    (r"^conv_2\.", "tail."),
    (r"^upsampler\.", "up."),
    (r"^block_(\d+)\.", lambda m: f"body.{int(m[1]) - 1}."),
    (r"\.c1_r\.", ".first."),
    (r"\.c2_r\.", ".second."),
    (r"\.dwc\.", ".spatial."),
    (r"\.pwc\.", ".channel."),
    (r"\.c5\.", ".last."),
    (r"\.esa\.", ".attention."),
)


def plain_name_of_mlrn(key: str) -> str:
    for pattern, replacement in PLAIN_NAMES_OF_MLRN:
        key = re.sub(pattern, replacement, key)
    return key


@pytest.mark.parametrize("scale", (2, 3))
@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("alkdnet", lambda scale: plain_nets.ALKDN(scale, 16, blocks=2, size=7)),
        ("bsrn", lambda scale: plain_nets.BSRN(scale, 16, blocks=2)),
        ("rlfn", lambda scale: plain_nets.RLFN(scale, 12, blocks=2, mid=14)),
        ("mlrn", lambda scale: plain_nets.MLRN(scale, 12, blocks=2)),
    ],
)
def test_networks_against_independent_ones(name: str, plain: Callable[[int], torch.nn.Module], scale: int) -> None:
    """The same weights in plain PyTorch networks written from the papers give the same pictures, in float64."""
    settings = {"alkdnet": {"num_feat": 16, "lk_size": 7}, "rlfn": {"num_feat": 12, "mid_channels": 14}}
    net = fastsr.create_model(
        name, scale=scale, num_block=2, **settings.get(name, {"num_feat": 16 if name == "bsrn" else 12})
    ).double()
    other = plain(scale).double()
    for parameter in net.parameters():  # norms start at 1 and 0, which would hide a missing affine
        torch.nn.init.normal_(parameter, std=0.2)
    state = net.state_dict()
    if name == "mlrn":
        state = {plain_name_of_mlrn(key): value for key, value in state.items()}
    other.load_state_dict(state, strict=True)
    x = torch.rand(2, 3, 31, 28, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), other(x), rtol=1e-9, atol=1e-9)
