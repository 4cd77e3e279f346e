"""Plain PyTorch as it would be if all its convolutions were of TF32, and kernels beside it.

Its depthwise convolutions may be exact where the others are not, while kernels round the operands of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from kernel_checks import FLOOR_EPSILONS
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight


def rounded(x: Tensor) -> Tensor:
    """To 10 bits of mantissa, ties away from zero; float64 to float64."""
    bits = x.float().view(torch.int32)
    return (bits + 0x1000 & ~0x1FFF).view(torch.float32).double()


class RoundedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, stride: int, padding: Any, groups: int) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.more = {"stride": stride, "padding": padding, "groups": groups}
        return torch.conv2d(rounded(x), rounded(w), **ctx.more)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        g = rounded(grad)
        dx, dw = conv2d_input(x.shape, rounded(w), g, **ctx.more), conv2d_weight(rounded(x), w.shape, g, **ctx.more)
        return dx, dw, None, None, None


@contextmanager
def convolutions_in_tf32() -> Iterator[None]:
    """PyTorch's, of float64 maps, on any device: exact products of rounded operands."""

    def conv2d(
        x: Tensor, w: Tensor, b: Tensor | None = None, stride: int = 1, padding: Any = 0, *, groups: int = 1
    ) -> Tensor:
        assert x.dtype == torch.float64
        y = RoundedConvolution.apply(x, w, stride, padding, groups)
        return y if b is None else y + b.view(1, -1, 1, 1)

    before, F.conv2d = F.conv2d, conv2d
    try:
        yield
    finally:
        F.conv2d = before


def assert_twice_rule(found: Sequence[Tensor], exact: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
    """As in kernel_checks, of float32 maps."""
    for i, (k, e, p) in enumerate(zip(found, exact, plain, strict=True)):
        allowed = 2 * (p - e).abs().max() + FLOOR_EPSILONS * torch.finfo(torch.float32).eps * e.abs().max()
        error = (k.double() - e).abs().max()
        assert error <= allowed, f"result {i}: {(error / allowed).item():.2f} of what is allowed"
