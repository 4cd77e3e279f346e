"""freeze: the copy computes what the network does, and the network stays as it is."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from pathlib import Path
from typing import Any

import plain_nets
import pytest
import torch
from test_models_cpu import NETS, image, network
from torch import Tensor, nn

import fastsr
from fastsr import _env, ops
from fastsr.nn import ALKDB, ALKConv, BlueprintESA, PlainESA

ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in NETS},
    "alkdnet_bsconv": ("alkdnet", {"conv": "BSConvU"}),
    "alkdnet_no_pixel_norm": ("alkdnet", {"pixel_norm": False, "lk_size": 5}),
    "alkdnet_no_residuals": ("alkdnet", {"feature_residual": False, "anchor_residual": False}),
    "mlrn_no_mixer": ("mlrn", {"conv_mix": False}),
    "mlrn_leaky_relu": ("mlrn", {"depthwise_conv": False, "activation": "leaky_relu", "bilinear": False}),
    "rlfn_mid_channels": ("rlfn", {"num_feat": 46, "mid_channels": 48}),
}


def outputs(net: nn.Module, x: Tensor, backend: str = "auto") -> Tensor:
    with torch.no_grad(), fastsr.backend(backend):
        return net(x)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in ABLATIONS] + [(n, d) for n in NETS for d in (torch.float16, torch.bfloat16)],
    ids=str,
)
def test_error_is_within_twice_that_of_pytorch(case: str, dtype: torch.dtype) -> None:
    name, settings = ABLATIONS[case]
    net = network(name, num_block=1, **settings)  # PyTorch's half precision is slow
    x = image(dtype)
    half = copy.deepcopy(net).to(dtype)
    exact = outputs(copy.deepcopy(net).double(), image(torch.float64))
    plain, frozen = outputs(half, x, "reference"), outputs(fastsr.freeze(net, dtype), x)
    assert frozen.dtype == dtype
    assert (frozen - exact).abs().max() <= 2 * (plain - exact).abs().max()
    assert (frozen - exact).square().mean() <= 4 * (plain - exact).square().mean()


def test_weights_are_packed_and_the_head_folded(cpu_kernels: None) -> None:
    """Otherwise the accuracy tests above would compare the usual path with itself."""
    net = fastsr.freeze(network("alkdnet"))
    assert net.copies == 1 and net.fea_conv.pw.weight.shape[1] == 3
    parts = [m for m in net.modules() if isinstance(m, ALKConv | BlueprintESA)]
    assert len(parts) == 2 * 5 + 1
    assert all(m.packed is not None for m in [*parts, net.fea_conv])
    assert all(vars(conv).get("packed") is not None for conv in (net.c1, net.B1.c5, net.B2.c5))
    bsrn = fastsr.freeze(network("bsrn"))
    stages = [getattr(bsrn.B1, part) for part in ("c1_r", "c2_r", "c3_r", "c4")]
    assert all(conv.packed is not None for conv in (bsrn.fea_conv, *stages, bsrn.c2))
    for name, convolutions in (("mlrn", 2 + 2 * 2), ("rlfn", 2 + 3 + 1)):
        parts = list(fastsr.freeze(network(name)).modules())
        assert all(m.packed is not None for m in parts if isinstance(m, PlainESA))
        assert sum(isinstance(m, nn.Conv2d) and vars(m).get("packed") is not None for m in parts) == convolutions


@pytest.mark.parametrize("name", NETS)
def test_the_network_stays_as_it_is(name: str) -> None:
    net = network(name).train()
    calls: list[nn.Module] = []
    next(net.children()).register_forward_hook(lambda module, _, __: calls.append(module))
    next(net.parameters()).requires_grad_(False)
    before, identities, flags = state(net), list(map(id, net.parameters())), [p.requires_grad for p in net.parameters()]
    expected = outputs(net, image())
    hooks = [len(m._forward_hooks) for m in net.modules()]
    fastsr.freeze(net, torch.float16)
    assert list(map(id, net.parameters())) == identities
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [len(m._forward_hooks) for m in net.modules()] == hooks
    assert net.training and all(m.training for m in net.modules())
    assert not any(getattr(m, "packed", None) is not None for m in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(outputs(net, image()), expected)


@pytest.mark.parametrize("name", NETS)
def test_training_the_network_does_not_change_the_copy(name: str) -> None:
    """Neither a step of an optimiser nor an EMA that writes `.data`, which no version counter shows."""
    net = network(name)
    frozen = fastsr.freeze(net)
    expected = outputs(frozen, image())
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(image()).square().mean().backward()
    optimiser.step()
    for p in net.parameters():
        p.data.mul_(0.9)
    assert torch.equal(outputs(frozen, image()), expected)
    assert not torch.equal(outputs(net, image()), expected)
    again = outputs(fastsr.freeze(net), image())
    torch.testing.assert_close(again, outputs(net, image()), rtol=1e-3, atol=1e-4)


def test_a_frozen_network_is_for_inference() -> None:
    net = fastsr.freeze(network("alkdnet").train())
    assert not any(m.training for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    assert net.eval() is net and net.train(False) is net and net.requires_grad_(False) is net
    assert not net(image()).requires_grad
    for call in (
        lambda: net.train(),
        lambda: net.train(True),
        lambda: net.requires_grad_(),
        lambda: net.load_state_dict(network("alkdnet").state_dict()),
    ):
        with pytest.raises(fastsr.InputError, match="frozen"):
            call()


def test_attributes_are_those_of_the_network() -> None:
    net = network("rlfn")
    frozen = fastsr.freeze(net)
    for name in ("scale", "min_size", "input_range", "architecture", "config", "num_in_ch"):
        assert getattr(frozen, name) == getattr(net, name)
    with pytest.raises(AttributeError, match="no_such_thing"):
        frozen.no_such_thing  # noqa: B018
    with pytest.raises(fastsr.InputError, match="needs at least"):
        frozen(image()[..., :8])


@pytest.mark.parametrize("name", NETS)
def test_deepcopy_and_pickle(name: str) -> None:
    frozen = fastsr.freeze(network(name))
    expected = outputs(frozen, image())
    buffer = io.BytesIO()
    torch.save(frozen, buffer)
    buffer.seek(0)
    copies = (
        copy.deepcopy(frozen),
        pickle.loads(pickle.dumps(frozen)),
        torch.load(buffer, weights_only=False),
    )
    del frozen
    for other in copies:
        assert isinstance(other, fastsr.FrozenNet)
        assert torch.equal(outputs(other, image()), expected)


def test_packs_again_for_another_instruction_set(cpu_isa: str) -> None:
    """Weights come packed for whatever is in use where a copy is unpickled; a mixture is an error, never a crash."""
    frozen = fastsr.freeze(network("alkdnet", num_block=1))
    expected, data = outputs(frozen, image()), pickle.dumps(frozen)
    level = _env.CPU_ISAS.index(cpu_isa)
    other = torch.ops.fastsr._cpu_isa(0 if level > 0 else 1)
    if other == level:
        pytest.skip("this processor has one instruction set")
    with pytest.raises(RuntimeError, match=r"instruction set .* pack them again"):
        outputs(frozen, image())
    torch.testing.assert_close(outputs(pickle.loads(data), image()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("shape", [(1, 3, 15, 15), (3, 3, 40, 17)], ids=str)
def test_layouts_and_shapes(name: str, shape: tuple[int, int, int, int]) -> None:
    net = network(name)
    frozen = fastsr.freeze(net)
    x = torch.rand(shape)
    nchw, nhwc = outputs(frozen, x), outputs(frozen, x.contiguous(memory_format=torch.channels_last))
    assert nchw.is_contiguous() and nhwc.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(nchw, nhwc)
    torch.testing.assert_close(nchw, outputs(net, x), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(frozen(x), nchw)
    assert torch.equal(frozen(x), nchw)  # with gradients on, of which there are none
    assert outputs(frozen, x[:0]).shape == (0, *nchw.shape[1:])


@pytest.mark.parametrize("name", NETS)
def test_moved_to_another_dtype(name: str) -> None:
    """`.to` gives what `freeze` with that dtype gives, but for the head, which that folds after rounding."""
    net = network(name, num_block=1)
    half, converted = fastsr.freeze(net, torch.bfloat16), fastsr.freeze(net).to(torch.bfloat16)
    a, b = (outputs(n, image(torch.bfloat16)).float() for n in (half, converted))
    assert (a - b).square().mean() <= 1e-4 * a.square().mean()
    double = fastsr.freeze(net, torch.float64)
    torch.testing.assert_close(
        outputs(double, image(torch.float64)),
        outputs(copy.deepcopy(net).double(), image(torch.float64)),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("name", ["alkdnet", "mlrn"])
def test_the_image_may_have_a_gradient(name: str) -> None:
    """Then the usual operators run, which can be differentiated."""
    net = network(name)
    frozen = fastsr.freeze(net)
    gradients = []
    for n in (net, frozen):
        x = image().requires_grad_()
        n(x).square().mean().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["alkdnet", "mlrn"])
def test_compiles_in_one_graph_and_exports(name: str) -> None:
    frozen = fastsr.freeze(network(name, num_block=1))
    expected = outputs(frozen, image())
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
    assert torch.equal(outputs(compiled, image()), expected)
    exported = torch.export.export(frozen, (image(),))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not [t for t in targets if t.startswith("fastsr")]
    torch.testing.assert_close(exported.module()(image()), expected, rtol=1e-4, atol=1e-5)


def test_threads_at_once() -> None:
    frozen = fastsr.freeze(network("alkdnet", num_block=1))
    images = [torch.rand(1, 3, 20 + i, 31) for i in range(4)]
    expected = [outputs(frozen, x) for x in images]
    failures: list[int] = []

    def work(i: int) -> None:
        for _ in range(3):
            with torch.inference_mode():
                if not torch.equal(frozen(images[i]), expected[i]):
                    failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("foreign", [plain_nets.ALKDN, plain_nets.BSRN, plain_nets.RLFN, plain_nets.MLRN])
def test_accelerated_networks(foreign: Any) -> None:
    net = foreign(channels=16, blocks=1).eval()
    with pytest.raises(fastsr.InputError, match="holds no part of fastsr"):
        fastsr.freeze(net)
    x = torch.rand(1, 3, 24, 26)
    plain = outputs(net, x)
    fastsr.accelerate(net)
    frozen = fastsr.freeze(nn.DataParallel(net))
    torch.testing.assert_close(outputs(frozen, x), plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())
    assert any(getattr(m, "packed", None) is not None for m in frozen.modules())
    graphs = fastsr.freeze(net, cuda_graph=True).graphs  # what accelerate adds does not keep calls from being recorded
    assert graphs is not None and not graphs._observed()


def test_wrappers_and_parametrizations_are_taken_off() -> None:
    net = network("alkdnet", num_block=1)
    expected = outputs(fastsr.freeze(net), image())
    torch.nn.utils.parametrizations.weight_norm(net.B1.c5)
    frozen = fastsr.freeze(torch.compile(net))
    assert torch.nn.utils.parametrize.is_parametrized(net.B1.c5)
    assert not torch.nn.utils.parametrize.is_parametrized(frozen.B1.c5)
    torch.testing.assert_close(outputs(frozen, image()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fastsr.freeze(3), "model is a int; pass a network"),  # type: ignore[arg-type]
        (lambda: fastsr.freeze(ALKDB), "model is the class ALKDB; pass a network"),  # type: ignore[arg-type]
        (lambda: fastsr.freeze(fastsr.freeze(network("mlrn"))), "model is frozen already"),
        (
            lambda: fastsr.freeze(network("mlrn"), torch.int8),
            r"dtype is torch\.int8; pass one of torch\.float32, torch",
        ),
        (lambda: fastsr.freeze(network("mlrn"), "float16"), r"dtype is 'float16'; pass one of torch\.float32, torch"),  # type: ignore[arg-type]
        (lambda: fastsr.freeze(network("mlrn"), [torch.float16]), r"dtype is \[torch.float16\]; pass one of"),  # type: ignore[arg-type]
        *(
            (lambda n=n: fastsr.freeze(network("mlrn"), max_graphs=n), rf"max_graphs is {n!r}; pass a whole number")  # type: ignore[misc]
            for n in (0, -1, True, 1.5, None, "3")
        ),
        (lambda: fastsr.freeze(nn.Conv2d(3, 3, 3)), "Conv2d holds no part of fastsr"),
    ],
)
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(fastsr.InputError, match=says):
        call()


# ---- the packed operators


def esa_weights(f: int = 12, c: int = 20) -> ops.BlueprintESAWeights:
    esa = BlueprintESA(c, f)
    with torch.no_grad():
        for p in esa.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return ops.BlueprintESAWeights._make(w.detach() for w in esa.weights())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padding", [0, 1])
def test_the_fold_is_exact_at_the_borders(cpu_isa: str, dtype: torch.dtype, padding: int) -> None:
    """conv2's depthwise pads what its pointwise gives, so the folded bias must not appear in the padding."""
    weights = esa_weights()
    x = torch.randn(2, 20, 17, 22).to(dtype)
    double, half = (ops.BlueprintESAWeights._make(w.to(d) for w in weights) for d in (torch.float64, dtype))
    exact = ops.esa(x.double(), double, conv2_padding=padding)
    with fastsr.backend("reference"):
        plain = ops.esa(x, half, conv2_padding=padding)
    packed = ops.pack_esa(half)
    assert packed is not None
    y = ops.esa(x, half, conv2_padding=padding, packed=packed)
    floor = 2 * torch.finfo(dtype).eps * exact.abs().max()
    assert (y - exact).abs().max() <= 2 * (plain - exact).abs().max() + floor


def test_packed_operators_refuse_what_does_not_fit(cpu_kernels: None) -> None:
    conv = ALKConv(8, 8, 5).requires_grad_(False)
    plain, stage = (
        ops.pack_alk_conv(conv.weights()),
        ops.pack_alk_conv(conv.weights(), torch.zeros(4, 8, 1, 1), torch.zeros(4)),
    )
    esa = ops.pack_esa(esa_weights())
    assert plain is not None and stage is not None and esa is not None
    x, wide = torch.rand(1, 8, 16, 16), torch.rand(1, 20, 16, 16)
    call = torch.ops.fastsr
    for bad in (stage, esa, plain[:-1], plain[16:], plain.double(), plain[None], torch.zeros_like(plain), plain[:3]):
        with pytest.raises(RuntimeError, match="alk_conv_packed: packed"):
            call.alk_conv_packed(x, bad, 8, 5, 1e-6, 0)
    for bad in (plain, esa, stage[:-16]):
        with pytest.raises(RuntimeError, match="alk_stage_packed: packed"):
            call.alk_stage_packed(x, bad, 4, 5, 1e-6)
    dense = ops.pack_conv3x3_gelu(torch.rand(12, 8, 3, 3), torch.rand(12))
    assert dense is not None
    for bad in (plain, esa, dense[:-1], dense[:40]):
        with pytest.raises(RuntimeError, match="conv3x3_gelu_packed: packed"):
            call.conv3x3_gelu_packed(x, bad, 12, None, 0)
    for shortcut in (x, torch.rand(1, 12, 16, 15), torch.rand(1, 12, 16, 16).half()):
        with pytest.raises(RuntimeError, match="conv3x3_gelu_packed: shortcut"):
            call.conv3x3_gelu_packed(x, dense, 12, shortcut, 0)
    with pytest.raises(RuntimeError, match="activation has code 3"):
        call.conv3x3_gelu_packed(x, dense, 12, None, 3)
    for bad in (plain, esa[:-1], esa[:40]):
        with pytest.raises(RuntimeError, match="esa_packed: packed"):
            call.esa_packed(wide, bad, 12, True, 1)
    with pytest.raises(RuntimeError, match="packed are weights for 8 channels, and x has 20"):
        call.alk_conv_packed(wide, plain, 8, 5, 1e-6, 0)
    with pytest.raises(RuntimeError, match="packed are weights of 5 taps; pass ones of 7"):
        call.alk_conv_packed(x, plain, 8, 7, 1e-6, 0)
    with pytest.raises(RuntimeError, match="pass at least 13x13"):
        call.esa_packed(wide[..., :12], esa, 12, True, 1)
    with pytest.raises(
        RuntimeError, match="packed are blueprint weights with 12 inner channels; pass plain ones with 8"
    ):
        call.esa_packed(wide, esa, 8, False, 1)
    damaged = plain.clone()
    damaged[3] = torch.nan
    with pytest.raises(RuntimeError, match="alk_conv_packed: packed"):
        call.alk_conv_packed(x, damaged, 8, 5, 1e-6, 0)


@pytest.mark.parametrize("channels", [(3, 16), (16, 20)], ids=["direct", "winograd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_packed_convolution_is_the_convolution(cpu_isa: str, dtype: torch.dtype, channels: tuple[int, int]) -> None:
    c, k = channels
    w, b = torch.randn(k, c, 3, 3).to(dtype), torch.randn(k).to(dtype)
    packed = ops.pack_conv3x3_gelu(w, b)
    for size in ((4, 9), (6, 6), (19, 35)):
        x, shortcut = torch.randn(2, c, *size).to(dtype), torch.randn(2, k, *size).to(dtype)
        assert torch.equal(
            ops.conv3x3_gelu(x, w, b, shortcut=shortcut, packed=packed), ops.conv3x3_gelu(x, w, b, shortcut=shortcut)
        )
    with pytest.raises(fastsr.InputError, match="conv3x3_gelu: shortcut has shape"):
        ops.conv3x3_gelu(x, w, b, shortcut=shortcut[..., 1:], packed=packed)


def test_packed_weights_are_left_where_autograd_records() -> None:
    conv = ALKConv(8, 8, 5)
    packed = ops.pack_alk_conv(conv.weights())
    ops.alk_conv(torch.rand(1, 8, 9, 9), conv.weights(), packed=packed).sum().backward()
    assert conv.pw.weight.grad is not None


def test_opcheck(cpu_kernels: None) -> None:
    conv = ALKConv(8, 8, 5).requires_grad_(False)
    x, d = torch.rand(2, 8, 15, 16), (torch.rand(3, 8, 1, 1), torch.rand(3))
    dense = ops.pack_conv3x3_gelu(torch.rand(8, 8, 3, 3), torch.rand(8))
    for layout in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=layout)
        for op, arguments in (
            (torch.ops.fastsr.alk_conv_packed, (x, ops.pack_alk_conv(conv.weights()), 8, 5, 1e-6, 1)),
            (torch.ops.fastsr.alk_stage_packed, (x, ops.pack_alk_conv(conv.weights(), *d), 3, 5, 1e-6)),
            (torch.ops.fastsr.esa_packed, (x, ops.pack_esa(esa_weights(c=8)), 12, True, 1)),
            (torch.ops.fastsr.conv3x3_gelu_packed, (x, dense, 8, x, 1)),
        ):
            torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("checkpoint", ["net_g_ALKDN_x4", "net_g_BSRN_x4", "rlfn_x4"])
def test_set5_scores_are_the_same(shared: Path, checkpoint: str) -> None:
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    from fastsr.evaluate import evaluate

    net = fastsr.load(shared / "weights" / f"{checkpoint}.pth")
    folder = shared / "data" / "set5"
    scores = [evaluate(n, folder, progress=False).psnr for n in (net, fastsr.freeze(net))]  # type: ignore[arg-type]
    assert scores[1] == pytest.approx(scores[0], abs=0.001)
