"""Parameters, multiply-adds, activations and convolutions of a network, as the efficient-SR challenges count them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastsr._dispatch import on_reference
from fastsr.errors import InputError


class Complexity(NamedTuple):
    """Counts for one image.

    Attributes:
        params: number of parameters.
        macs: multiply-adds of all convolutions, without their biases.
        activations: elements of all convolutions' outputs.
        convolutions: number of convolutions executed.
    """

    params: int
    macs: int
    activations: int
    convolutions: int


class _ConvolutionCounter(TorchDispatchMode):
    """Counts where convolutions happen rather than where modules are, so fused modules count like plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = self.activations = self.convolutions = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            weight: Tensor = args[1]
            self.macs += out.numel() * weight[0].numel()
            self.activations += out.numel()
            self.convolutions += 1
        return out


def complexity(net: nn.Module, height: int = 256, width: int = 256) -> Complexity:
    """Count the work of `net` on one LR image of `height` x `width` pixels.

    Nothing is computed: the network runs on meta tensors, on the reference path. The defaults are the NTIRE efficient
    super-resolution challenge's; the papers' "Multi-Adds" use the LR size that gives a 1280x720 output.

    Args:
        net: a network that takes [N, num_in_ch, H, W] (3 channels where it does not say).
        height, width: of the low-resolution image.

    Raises:
        InputError: `net` is not a module, or the image is too small for it.
    """
    if not isinstance(net, nn.Module):
        raise InputError(f"complexity: net is a {type(net).__name__}; pass a network, an instance of torch.nn.Module")
    shadow = copy.deepcopy(net).to("meta")
    image = torch.empty(1, getattr(net, "num_in_ch", 3), height, width, device="meta")
    with on_reference(), torch.no_grad(), _ConvolutionCounter() as counter:
        shadow(image.to(next(shadow.parameters(), image).dtype))
    return Complexity(sum(p.numel() for p in net.parameters()), counter.macs, counter.activations, counter.convolutions)
