"""alk_conv and alk_stage: C++ kernels against float64, layouts, edges, errors, compile."""

from __future__ import annotations

import kernel_checks as kc
import pytest
import torch
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.errors import BackendError, InputError
from fastsr.reference import Activation

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# [N, C, H, W], K, taps, activation. Sides below one tile, odd sizes, several strips and bands, padded channels.
CASES: tuple[tuple[tuple[int, int, int, int], int, int, Activation], ...] = (
    ((2, 64, 13, 18), 64, 9, "none"),
    ((1, 64, 1, 1), 32, 9, "gelu"),
    ((2, 58, 7, 21), 46, 5, "leaky_relu"),
    ((2, 3, 5, 2), 12, 3, "none"),
    ((1, 12, 40, 70), 20, 7, "gelu"),
    ((1, 16, 3, 150), 16, 11, "none"),
    ((1, 5, 70, 3), 3, 1, "leaky_relu"),
)


def weights(c: int, k: int, taps: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = ((k, c, 1, 1), (k, 1, taps, 1), (k,), (k, 1, 1, taps), (k,), (k, 1, 3, 3), (k,))
    convs = [kc.weight(*s, seed=i, gain=1.0 if len(s) > 1 else 0.3) for i, s in enumerate(shapes)]
    norm = [1 + kc.weight(k, seed=7, gain=0.3), kc.weight(k, seed=8, gain=0.3)]
    return [w.to(dtype) for w in convs + norm]


def distil_weights(c: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [kc.weight(d, c, 1, 1, seed=9, dtype=dtype), kc.weight(d, seed=10, gain=0.3, dtype=dtype)]


def conv(activation: Activation = "none"):
    return lambda x, *w: ops.alk_conv(x, ops.ALKConvWeights(*w), activation=activation)


def stage(x: Tensor, d_weight: Tensor, d_bias: Tensor, *w: Tensor) -> tuple[Tensor, Tensor]:
    return ops.alk_stage(x, d_weight, d_bias, ops.ALKConvWeights(*w))


def stage_inputs(
    shape: tuple[int, int, int, int], d: int, taps: int, dtype: torch.dtype = torch.float32, layout: str = "nhwc"
) -> list[Tensor]:
    c = shape[1]
    return [kc.feature_map(shape, layout, dtype), *distil_weights(c, d, dtype), *weights(c, c, taps, dtype)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "k", "taps", "activation"), CASES, ids=str)
def test_conv_twice_rule(cpu_isa: str, dtype: torch.dtype, shape, k: int, taps: int, activation: Activation) -> None:
    inputs = [kc.feature_map(shape, "nhwc", dtype), *weights(shape[1], k, taps, dtype)]
    kc.assert_twice_rule(conv(activation), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "d", "taps"),
    [((2, 64, 14, 17), 32, 9), ((1, 64, 1, 1), 32, 9), ((1, 58, 9, 6), 29, 3), ((1, 20, 37, 67), 3, 5)],
    ids=str,
)
def test_stage_twice_rule(cpu_isa: str, dtype: torch.dtype, shape, d: int, taps: int) -> None:
    kc.assert_twice_rule(stage, stage_inputs(shape, d, taps, dtype))


@pytest.mark.parametrize("layout", kc.LAYOUTS)
def test_layouts(cpu_kernels: None, layout: str) -> None:
    kc.assert_twice_rule(stage, stage_inputs((2, 24, 6, 11), 12, 9, layout=layout))
    inputs = [kc.feature_map((2, 24, 6, 11), layout), *weights(24, 40, 3)]
    kc.assert_twice_rule(conv("gelu"), inputs)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_output_keeps_layout(cpu_kernels: None, layout: str) -> None:
    x, *w = stage_inputs((2, 24, 6, 11), 12, 9, layout=layout)
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    for out in (*stage(x, *w), conv()(x, *w[2:])):
        assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("taps", [13, 31, 63])
def test_any_kernel_size(cpu_isa: str, taps: int) -> None:
    # Not in half precision: oneDNN, under the reference, does not come to an end for bfloat16 and large kernels.
    inputs = [kc.feature_map((1, 12, 35, 41), "nhwc"), *weights(12, 8, taps)]
    kc.assert_twice_rule(conv(), inputs)


def test_training_and_inference_sizes(cpu_kernels: None) -> None:
    """Several bands, strips and partial sums, in the network's shapes."""
    kc.assert_twice_rule(stage, stage_inputs((4, 64, 48, 48), 32, 9))
    kc.assert_twice_rule(stage, stage_inputs((1, 64, 131, 140), 32, 9))
    inputs = [kc.feature_map((1, 64, 131, 140), "nhwc"), *weights(64, 32, 9)]
    kc.assert_twice_rule(conv("gelu"), inputs)


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 0, 4), (2, 16, 4, 0)])
def test_empty(cpu_kernels: None, shape: tuple[int, int, int, int]) -> None:
    inputs = [torch.empty(shape), *distil_weights(16, 8), *weights(16, 16, 9)]
    distilled, refined, *gradients = kc.results(stage, inputs, "cpu")
    assert distilled.shape == (shape[0], 8, *shape[2:]) and refined.shape == shape
    assert all(g.shape == i.shape and not g.any() for g, i in zip(gradients, inputs, strict=True))


def test_repeatable(cpu_isa: str) -> None:
    kc.assert_repeatable(stage, stage_inputs((2, 64, 35, 150), 32, 9))
    inputs = [kc.feature_map((1, 12, 70, 33), "nhwc"), *weights(12, 20, 5)]
    kc.assert_repeatable(conv("leaky_relu"), inputs)


def test_nan_propagates(cpu_isa: str) -> None:
    x, *w = stage_inputs((1, 16, 20, 20), 8, 5)
    x[0, 3, 10, 10] = torch.nan
    with fastsr.backend("reference"):
        expected = stage(x, *w)
    for out, reference in zip(stage(x, *w), expected, strict=True):
        assert torch.equal(out.isnan(), reference.isnan())


def test_infinity_propagates(cpu_isa: str) -> None:
    """Where the reference is finite the kernel is, too; GELU(-inf) is 0 here and NaN in PyTorch."""
    x, *w = stage_inputs((1, 16, 20, 20), 8, 5)
    x[0, 3, 10, 10] = torch.inf
    with fastsr.backend("reference"):
        expected = stage(x, *w)
    for out, reference in zip(stage(x, *w), expected, strict=True):
        assert not out[0, :, 10, 10].isfinite().all()
        assert out[reference.isfinite()].isfinite().all()


def test_slices_of_memory_are_left_alone(cpu_kernels: None) -> None:
    """NaN around and between the pixels of x does not reach the result."""
    x, *w = stage_inputs((1, 20, 9, 19), 7, 9, layout="channel_slice")
    assert all(out.isfinite().all() for out in stage(x, *w))


def test_float32_weights_with_half_precision_maps(cpu_kernels: None) -> None:
    x, *w = stage_inputs((1, 16, 9, 9), 8, 5)
    half = x.bfloat16()
    distilled, refined = torch.ops.fastsr.alk_stage(half, *w, 1e-6)
    expected = stage(half.float(), *w)
    assert refined.dtype == torch.bfloat16
    for out, reference in zip((distilled, refined), expected, strict=True):
        assert (out.float() - reference).abs().max() <= 2**-8 * reference.abs().max()


def test_float64_runs_on_the_reference_path() -> None:
    x, *w = (t.double() for t in stage_inputs((1, 8, 5, 5), 4, 3))
    assert stage(x, *w)[0].dtype == torch.float64


def test_kernel_beyond_the_limit_falls_back(cpu_kernels: None) -> None:
    x, *w = [kc.feature_map((1, 4, 8, 8), "nhwc"), *weights(4, 4, 65)]
    with fastsr.backend("reference"):
        expected = conv()(x, *w)
    assert torch.equal(conv()(x, *w), expected)
    with fastsr.backend("cpu"), pytest.raises(BackendError, match="65 taps"):
        conv()(x, *w)


def test_opcheck(cpu_kernels: None) -> None:
    inputs = [t.requires_grad_() for t in stage_inputs((2, 8, 6, 5), 4, 5)]
    torch.library.opcheck(torch.ops.fastsr.alk_stage.default, (*inputs, 1e-6))
    leaves = [inputs[0], *inputs[3:]]
    torch.library.opcheck(torch.ops.fastsr.alk_conv.default, (*leaves, 1e-6, 1))
    plain = [t.detach() for t in inputs]
    grads = [torch.randn(2, 4, 6, 5), torch.randn(2, 8, 6, 5)]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.fastsr.alk_stage_backward.default, (*grads, *plain, 1e-6), test_utils=tests)
    torch.library.opcheck(
        torch.ops.fastsr.alk_conv_backward.default, (grads[1], plain[0], *plain[3:], 1e-6, 2), test_utils=tests
    )


def test_compile_fullgraph(cpu_kernels: None) -> None:
    inputs = [t.requires_grad_() for t in stage_inputs((1, 8, 6, 5), 4, 5)]
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
    for out, expected in zip(compiled(*inputs), stage(*inputs), strict=True):
        assert torch.equal(out, expected)
    grads = torch.autograd.grad(sum(o.sum() for o in compiled(*inputs)), inputs)
    expected_grads = torch.autograd.grad(sum(o.sum() for o in stage(*inputs)), inputs)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


def test_double_backward_is_refused(cpu_kernels: None) -> None:
    inputs = [t.requires_grad_() for t in stage_inputs((1, 8, 4, 4), 4, 3)]
    (dx,) = torch.autograd.grad(stage(*inputs)[1].sum(), inputs[0], create_graph=True)
    with pytest.raises(InputError, match="cannot be differentiated again"):
        dx.sum().backward()


def test_bad_input_is_named() -> None:
    x, d_weight, d_bias, *w = stage_inputs((1, 8, 4, 4), 4, 3)
    with pytest.raises(InputError, match="alk_stage: d_bias"):
        stage(x, d_weight, d_bias[:2], *w)
    with pytest.raises(InputError, match="pw_weight gives 6 channels; pass 8"):
        stage(x, d_weight, d_bias, *weights(8, 6, 3))
    with pytest.raises(InputError, match="alk_conv: lora2_weight"):
        conv()(x, *w[:3], w[3][..., :1], *w[4:])
    with pytest.raises(InputError, match="activation is 'relu'"):
        ops.alk_conv(x, ops.ALKConvWeights(*w), activation="relu")  # type: ignore[arg-type]


@pytest.mark.parametrize("position", range(12))
def test_operator_checks_every_tensor(cpu_kernels: None, position: int) -> None:
    """Called directly, the operators refuse what would be read out of bounds."""
    inputs = stage_inputs((1, 8, 4, 4), 4, 5)
    grads = [torch.randn(1, 4, 4, 4), torch.randn(1, 8, 4, 4)]
    inputs[position] = inputs[position][:, :-1] if position == 0 else inputs[position][:-1]
    with pytest.raises(RuntimeError, match="alk_stage"):
        torch.ops.fastsr.alk_stage(*inputs, 1e-6)
    with pytest.raises(RuntimeError, match="alk_stage_backward"):
        torch.ops.fastsr.alk_stage_backward(*grads, *inputs, 1e-6)


def test_operator_checks_gradients(cpu_kernels: None) -> None:
    inputs = stage_inputs((1, 8, 4, 4), 4, 5)
    with pytest.raises(RuntimeError, match="grad_distilled is"):
        torch.ops.fastsr.alk_stage_backward(torch.randn(1, 3, 4, 4), torch.randn(1, 8, 4, 4), *inputs, 1e-6)
    with pytest.raises(RuntimeError, match="grad_refined and x differ in dtype"):
        grads = torch.randn(1, 4, 4, 4), torch.randn(1, 8, 4, 4).double()
        torch.ops.fastsr.alk_stage_backward(*grads, *inputs, 1e-6)
    with pytest.raises(RuntimeError, match="activation is 3"):
        torch.ops.fastsr.alk_conv(inputs[0], *inputs[3:], 1e-6, 3)
