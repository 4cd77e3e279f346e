"""esa: enhanced spatial attention, plain and blueprint form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsr import _cuda, reference
from fastsr._dispatch import Extents, limit, select
from fastsr._shapes import LIMITS
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._define import (
    can_pack,
    define_choice,
    define_inference,
    define_over,
    define_packed,
    empty_map,
    fuses_on_cuda,
    may_overwrite,
    register_cpu,
    register_cuda,
    register_triton,
    takes_packed,
)
from fastsr.reference import ESA_POOL, BlueprintESAWeights, ESAWeights, PlainESAWeights

MOST = {  # csrc/cuda/esa.h
    "cuda": {"channels": 512, "channels inside": 32},
    "triton": {"channels": LIMITS["esa"]["c"], "channels inside": LIMITS["esa"]["f"]},
}


def esa_min_size(conv2_padding: int) -> int:
    """Smallest height and width for which the strided convolution still feeds one pooling window."""
    return 2 * ESA_POOL + 1 - 2 * conv2_padding


def check_size(op: str, x: Tensor, weights: ESAWeights, conv2_padding: int) -> None:
    """The form, the padding and the image's size must be ones that there are."""
    if not isinstance(weights, PlainESAWeights | BlueprintESAWeights):
        raise InputError(f"{op}: weights is a {type(weights).__name__}; pass PlainESAWeights or BlueprintESAWeights")
    if conv2_padding not in (0, 1):
        raise InputError(f"{op}: conv2_padding is {conv2_padding}; pass 0 or 1")
    least = esa_min_size(conv2_padding)
    if x.shape[2] < least or x.shape[3] < least:
        raise InputError(f"{op}: x is {x.shape[2]}x{x.shape[3]} pixels; pass at least {least}x{least}")


def check_esa_weights(op: str, x: Tensor, weights: ESAWeights) -> None:
    """The weights must fit one another and `x`."""
    c = x.shape[1]
    _checks.weight(op, x, weights.conv1_weight, "conv1_weight", (None, c, 1, 1))
    f = weights.conv1_weight.shape[0]
    shapes: dict[str, tuple[int, ...]] = {"conv1_weight": (f, c, 1, 1), "conv_f_weight": (f, f, 1, 1)}
    shapes["conv4_weight"] = (c, f, 1, 1)
    for name, value in weights._asdict().items():
        if name in shapes:
            shape = shapes[name]
        elif name == "conv4_bias":
            shape = (c,)
        elif name.endswith("_bias"):
            shape = (f,)
        elif name.endswith("_pw_weight"):
            shape = (f, f, 1, 1)
        elif name.endswith("_dw_weight"):
            shape = (f, 1, 3, 3)
        else:
            shape = (f, f, 3, 3)
        _checks.weight(op, x, value, name, shape)


def form_of(weights: ESAWeights) -> tuple[int, bool]:
    """Inner channels, and whether it is the blueprint form."""
    return weights.conv1_weight.shape[0], isinstance(weights, BlueprintESAWeights)


def _reduced_size(x: Tensor, inner: int) -> tuple[int, ...]:
    return (x.shape[0], (inner + 15) // 16 * 16, *x.shape[2:])


def empty_reduced(x: Tensor, inner: int) -> Tensor:
    """Room for conv1 of a map as large as `x`, with `inner` channels, as operators in front of an ESA leave it."""
    return x.new_empty(_reduced_size(x, inner)).to(memory_format=torch.channels_last)


def check_reduced(op: str, x: Tensor, reduced: Tensor, weights: ESAWeights) -> None:
    """`reduced` must be as large as conv1 of `x`."""
    _checks.weight(op, x, reduced, "reduced", _reduced_size(x, weights.conv1_weight.shape[0]))


def _fake(x: Tensor, weights: list[Tensor], conv2_padding: int) -> Tensor:
    return empty_map(x, x.shape[1])


def _fake_reduced(x: Tensor, *rest: Any) -> Tensor:
    return empty_map(x, x.shape[1])


def _fake_backward(grad: Tensor, x: Tensor, weights: list[Tensor], conv2_padding: int) -> tuple[Tensor, list[Tensor]]:
    return empty_map(x, x.shape[1]), [w.new_empty(w.shape) for w in weights]


def _setup_context(ctx: Any, inputs: tuple[Tensor, list[Tensor], int], output: Tensor) -> None:
    x, weights, ctx.conv2_padding = inputs
    ctx.save_for_backward(x, *weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, list[Tensor], None]:
    x, *weights = ctx.saved_tensors
    return (*ctx.call_backward(grad, x, weights, ctx.conv2_padding), None)


SCHEMA = "(Tensor x, Tensor[] weights, int conv2_padding) -> Tensor"
BACKWARD_SCHEMA = "(Tensor grad, Tensor x, Tensor[] weights, int conv2_padding) -> (Tensor, Tensor[])"
REDUCED_SCHEMA = "(Tensor x, Tensor reduced, Tensor[] weights, int conv2_padding) -> Tensor"

_call = define_choice(
    "esa",
    SCHEMA,
    BACKWARD_SCHEMA,
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
register_cpu("esa", (torch.float32, torch.float16, torch.bfloat16))
register_triton("esa")
register_cuda("esa", SCHEMA, BACKWARD_SCHEMA, tf32=True)


def _extents(x: Tensor, weights: Sequence[Tensor], **_: Any) -> Extents:
    return {"channels": x.shape[1], "channels inside": weights[0].shape[0]}


limit("esa", _extents, MOST)
define_inference("esa_reduced", REDUCED_SCHEMA, _fake_reduced)
_cuda.define_fusion("esa_reduced", REDUCED_SCHEMA)
define_packed(
    "esa",
    "(Tensor[] weights) -> Tensor",
    {"esa_packed": "(Tensor x, Tensor packed, int inner, bool separable, int conv2_padding) -> Tensor"},
    {"esa_packed": lambda x, packed, inner, separable, conv2_padding: empty_map(x, x.shape[1])},
)
define_over("esa", "(Tensor(a!) x, Tensor[] weights, int conv2_padding) -> ()")
define_over("esa_packed", "(Tensor(a!) x, Tensor packed, int inner, bool separable, int conv2_padding) -> ()")


def pack_esa(weights: ESAWeights) -> Tensor | None:
    """Weights in the order in which the CPU kernel reads them, for `packed` of `esa`; folded in the blueprint form.

    There conv2's pointwise and conv_f, both linear, become part of conv1, one 1x1 from C to 2 f channels.

    Returns:
        A vector for this machine's instruction set and for maps of any dtype, or None where the kernel cannot take
        these weights. It is a copy: later changes of the weights do not reach it.
    """
    if not can_pack("esa", weights.conv1_weight):
        return None
    with torch.no_grad():
        return torch.ops.fastsr.esa_pack(list(weights))


def esa(
    x: Tensor,
    weights: ESAWeights,
    *,
    conv2_padding: int = 0,
    packed: Tensor | None = None,
    overwrite: bool = False,
    reduced: Tensor | None = None,
) -> Tensor:
    """Enhanced spatial attention: x times a sigmoid gate from a small, strided side path.

    The plain form is RLFN's (its section 3.2) and MLRN's (equation 5), the blueprint form BSRN's (section 3.3) and
    ALKDNet's (section 3.2). The side path is resized to the image, so the gate depends on the image's size.

    Args:
        x: [N, C, H, W] with H and W at least 15 (13 with `conv2_padding` 1).
        weights: PlainESAWeights or BlueprintESAWeights; the type chooses the form.
        conv2_padding: padding of the stride-2 convolution: 1 in ALKDNet, otherwise 0.
        packed: what `pack_esa` made of `weights`; used where the CPU kernel runs without autograd.
        overwrite: `x` is not needed any more, and may be returned with the result in it.
        reduced: what `conv_mix_reduce` or `pointwise_reduce` returned beside `x`, of CUDA C++, which goes on with it
            without autograd.

    Returns:
        [N, C, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype or device, or an image that is too small.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("esa", x)
    check_size("esa", x, weights, conv2_padding)
    if reduced is not None and fuses_on_cuda("esa", x, reduced, *weights):
        check_esa_weights("esa", x, weights)
        check_reduced("esa", x, reduced, weights)
        return torch.ops.fastsr.esa_reduced(x, reduced, list(weights), conv2_padding)
    if takes_packed("esa", packed, x, *weights):
        form = form_of(weights)
        if not (overwrite and may_overwrite("esa", x)):
            return torch.ops.fastsr.esa_packed(x, packed, *form, conv2_padding)
        torch.ops.fastsr.esa_packed_(x, packed, *form, conv2_padding)
        return x
    check_esa_weights("esa", x, weights)
    backend = select("esa", x, _extents(x, weights), weights)
    if backend == "reference":
        return reference.esa(x, weights, conv2_padding=conv2_padding)
    if not (overwrite and may_overwrite("esa", x, *weights)):
        return _call[backend](x, list(weights), conv2_padding)
    torch.ops.fastsr.esa_(x, list(weights), conv2_padding)
    return x
