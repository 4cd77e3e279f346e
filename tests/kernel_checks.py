"""Checks that every operator's tests share: layouts, the 2x rule, bit-equal repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor

import fastsr
from fastsr import reference
from fastsr.reference import Residual

LAYOUTS = ("nchw", "nhwc", "channel_slice", "pixel_slice", "expanded")

# A floor for the 2x rule, in units of the dtype's epsilon times the result's scale: where plain PyTorch happens to be
# exact (a sum of one term, say), a kernel may still round once.
FLOOR_EPSILONS = 2.0


def feature_map(shape: Sequence[int], layout: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A random [N, C, H, W] map in one of LAYOUTS; slices leave NaN in the memory they skip."""
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64).to(dtype)
    if layout == "nchw":
        return values.contiguous()
    if layout == "nhwc":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "channel_slice":
        wide = torch.full((n, h, w, 2 * c + 3), torch.nan, dtype=dtype).permute(0, 3, 1, 2)
        view = wide[:, 2 : 2 + c]
    elif layout == "pixel_slice":
        view = torch.full((n, c, h + 2, 2 * w + 1), torch.nan, dtype=dtype)[:, :, 1 : h + 1, 1 : 2 * w + 1 : 2]
    elif layout == "expanded":
        return values[:, :1].expand(n, c, h, w)
    else:
        raise ValueError(layout)
    view.copy_(values)
    return view


def weight(*shape: int, seed: int = 0, gain: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random parameter scaled to keep activations near unit variance."""
    generator = torch.Generator().manual_seed(1000 + seed)
    fan_in = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 1
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * gain / fan_in**0.5).to(dtype)


def device_of(backend: str) -> str:
    """Where the kernels of `backend` run: the GPU for GPU kernels, if there is one (else Triton's interpreter)."""
    return "cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu"


def moved(x: Tensor, device: str) -> Tensor:
    """`x` on `device` with its strides and whatever lies between its elements."""
    if x.device.type == device:
        return x
    memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return memory.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """How PyTorch's convolutions, and the GPU kernels with them, multiply float32: "ieee" or "tf32".

    pytest's monkeypatch cannot give the attribute back: it is no entry of the object's __dict__.
    """
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    conv.fp32_precision = precision
    try:
        yield
    finally:
        conv.fp32_precision = before


def results(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    backend: str,
    seed: int = 7,
    gradients: bool = True,
) -> list[Tensor]:
    """Outputs of `function(*inputs)` under `backend`, then the gradients of all inputs for a fixed random cotangent.

    Without `gradients` the call is one of inference.
    """
    if not gradients:
        with fastsr.backend(backend), torch.no_grad():
            out = function(*(x.detach() for x in inputs))
        return list(out) if isinstance(out, tuple) else [out]
    leaves = [x.detach().requires_grad_() for x in inputs]
    with fastsr.backend(backend):
        out = function(*leaves)
        outputs = out if isinstance(out, tuple) else (out,)
        generator = torch.Generator().manual_seed(seed)
        cotangents = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
        found = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
    return [o.detach() for o in outputs] + [
        torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)
    ]


def assert_twice_rule(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    backend: str = "cpu",
    gradients: bool = True,
) -> None:
    """Error of `backend` against float64 <= 2 x the error of plain PyTorch in the inputs' dtype, all gradients too."""
    inputs = [moved(x.detach(), device_of(backend)) for x in inputs]
    exact = results(function, [x.double() for x in inputs], "reference", gradients=gradients)
    plain = results(function, inputs, "reference", gradients=gradients)
    kernel = results(function, inputs, backend, gradients=gradients)
    for i, (e, p, k) in enumerate(zip(exact, plain, kernel, strict=True)):
        assert k.shape == e.shape and k.dtype == p.dtype, f"result {i}: {tuple(k.shape)} {k.dtype}"
        if e.numel() == 0:
            continue
        scale = e.abs().max().item()
        floor = FLOOR_EPSILONS * torch.finfo(k.dtype).eps * scale
        allowed = 2 * (p.double() - e).abs().max().item() + floor
        error = (k.double() - e).abs().max().item()
        assert error <= allowed, f"result {i}: error {error:.3e} exceeds {allowed:.3e} (scale {scale:.3e})"


def assert_upsample_under_autocast(dtype: torch.dtype, residual: Residual, backend: str) -> None:
    """Features of `dtype` beside weights and an image of float32: the image is added to the product as it is.

    Values and all gradients obey the 2x rule, and the reference is not called.
    """

    def call(x: Tensor, w: Tensor, b: Tensor, lr: Tensor, added: Residual = residual) -> Tensor:
        with torch.autocast(x.device.type, dtype):
            return fastsr.ops.upsample(x, w, b, lr, scale=2, residual=added)

    for layout, lr_layout in (("nhwc", "nchw"), ("nchw", "nhwc")):
        x, lr = feature_map((2, 16, 5, 7), layout, dtype), feature_map((2, 3, 5, 7), lr_layout, seed=1)
        inputs = [moved(t, device_of(backend)) for t in (x, weight(12, 16, 3, 3), weight(12, seed=1), lr)]
        assert_twice_rule(call, inputs, backend)
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(reference, "upsample")
            y, *gradients = results(call, inputs, backend)
            product, *_ = results(partial(call, added="none"), inputs, backend)
        mode = "nearest" if residual == "anchor" else "bilinear"
        image = torch.nn.functional.interpolate(inputs[-1], scale_factor=2, mode=mode)
        assert y.dtype == torch.float32 and product.dtype == dtype and torch.equal(y, product + image)
        assert [g.dtype for g in gradients] == [t.dtype for t in inputs]
        memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
        assert y.is_contiguous(memory_format=memory_format)


def assert_repeatable(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], backend: str = "cpu"
) -> None:
    """Outputs and gradients are bit-equal between runs and for 1 and more threads."""
    inputs = [moved(x.detach(), device_of(backend)) for x in inputs]
    threads = torch.get_num_threads()
    first = results(function, inputs, backend)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for a, b in zip(first, results(function, inputs, backend), strict=True):
                assert torch.equal(a, b), f"results differ with {count} threads"
    finally:
        torch.set_num_threads(threads)


def assert_network_within_twice(net: torch.nn.Module, image: Tensor, backend: str) -> None:
    """Output and all gradients of a whole network against float64.

    Behind a chain of operators the error of one small tensor is a matter of luck (test_models_cpu.py): the mean over
    all tensors is held to twice PyTorch's, single ones to four times its worst, the output to twice.
    """
    names = [name for name, _ in net.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), x)
        return out

    inputs = [moved(t.detach(), device_of(backend)) for t in (image, *net.parameters())]
    exact = results(run, [t.double() for t in inputs], "reference")
    plain, fused = (
        [((r - e).norm() / e.norm()).item() for r, e in zip(results(run, inputs, which), exact, strict=True)]
        for which in ("reference", backend)
    )
    assert sum(fused) <= 2 * sum(plain) and max(fused) <= 4 * max(plain) and fused[0] <= 2 * plain[0]


def assert_graph_replays(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], backend: str
) -> None:
    """A captured CUDA graph gives the results of a call after its first input has changed."""
    inputs = [t.cuda() for t in inputs]
    with torch.no_grad(), fastsr.backend(backend):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = function(*inputs)
        inputs[0].copy_(torch.randn_like(inputs[0]))
        graph.replay()
        pairs = (r if isinstance(r, tuple) else (r,) for r in (captured, function(*inputs)))
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
