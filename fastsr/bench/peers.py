"""Against what fastsr is measured: turns a case into something to run, in PyTorch; runtimes.py has the others.

"Eager" and "compile" are PyTorch on fastsr's reference path, which is the networks in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastsr
from fastsr import reference
from fastsr.bench.cases import TORCH_DTYPES, Case
from fastsr.bench.registry import Peer

Context = Callable[[], AbstractContextManager[Any]]
Maps = tuple[Tensor, ...]


class PeerMissing(Exception):
    """Why a peer cannot take part in a case."""


@dataclass
class Runner:
    """A peer made ready for a case.

    Attributes:
        run: what is timed; its results are compared with the reference's.
        inputs: the maps that `run` reads; writing into them changes its next results.
        context: to be in while it runs, outside of the timing.
        prepare: to be called, in the context, after `inputs` have changed.
        fetch: makes of what `run` returned what can be compared.
    """

    run: Callable[[], Any]
    inputs: Maps
    context: Context
    prepare: Callable[[], None] = lambda: None
    fetch: Callable[[Any], Any] = lambda result: result


def make_runner(peer: Peer, case: Case, device: torch.device) -> Runner:
    """`peer` ready to run `case` on `device`.

    Raises:
        PeerMissing: a package or a device is missing, or the peer is not for this kind of case.
    """
    if device.type not in peer.devices:
        raise PeerMissing(f"not for {device.type}")
    if case.group not in peer.groups:
        raise PeerMissing(f"not for {case.group}")
    if case.direction not in peer.directions:
        raise PeerMissing(f"runs {', '.join(peer.directions)} only")
    if peer.kind != "torch":
        from fastsr.bench.runtimes import RUNTIMES

        return RUNTIMES[peer.kind](case, device)
    return _torch_runner(peer, case, device)


def _torch_runner(peer: Peer, case: Case, device: torch.device) -> Runner:
    layout = case.layout if peer.layout == "caller" else peer.layout
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    module: nn.Module = case.build().to(device, case.tensor_dtype).to(memory_format=memory_format)  # type: ignore[call-overload]
    inputs = tuple(x.contiguous(memory_format=memory_format) for x in case.maps(device=device))
    if peer.frozen:
        module = fastsr.freeze(module)
    elif case.direction != "forward":
        module.train()
    call: Callable[..., Any] = _compiled(module, peer) if peer.compile else module
    context = _context(peer, case, device)
    runner = _DIRECTIONS[case.direction](call, module, inputs, context, case)
    return _graphed(runner) if peer.graph else runner


def _compiled(module: nn.Module, peer: Peer) -> Callable[..., Any]:
    def call(*maps: Tensor) -> Any:
        return module(*maps)

    # Dynamo keeps what it compiled by code object: with one of its own, a peer cannot be given another's.
    call.__code__ = call.__code__.replace(co_name="call_" + "".join(filter(str.isalnum, peer.name)))
    return torch.compile(call, fullgraph=True, dynamic=False, mode=peer.compile)


def _forward(call: Callable[..., Any], module: nn.Module, inputs: Maps, context: Context, _: Case) -> Runner:
    module.requires_grad_(False)

    def inference() -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(context())
        stack.enter_context(torch.inference_mode())
        return stack

    return Runner(lambda: call(*inputs), inputs, inference)


def _leaves(module: nn.Module, inputs: Maps) -> list[Tensor]:
    return [*(x.requires_grad_() for x in inputs), *module.parameters()]


def _cotangents(outputs: Maps) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.empty_like(y).copy_(torch.randn(y.shape, generator=generator)) for y in outputs]


def _outputs(result: Any) -> Maps:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _backward(call: Callable[..., Any], module: nn.Module, inputs: Maps, context: Context, _: Case) -> Runner:
    leaves = _leaves(module, inputs)
    held: dict[str, Any] = {}

    def prepare() -> None:
        held["outputs"] = _outputs(call(*inputs))
        held["cotangents"] = _cotangents(held["outputs"])

    def run() -> Any:
        return torch.autograd.grad(held["outputs"], leaves, held["cotangents"], retain_graph=True, allow_unused=True)

    return Runner(run, inputs, context, prepare)


def _step(call: Callable[..., Any], module: nn.Module, inputs: Maps, context: Context, case: Case) -> Runner:
    """Forward, loss and backward; the optimiser is the same for everybody and left out."""
    if case.group == "ops":
        leaves, cotangents = _leaves(module, inputs), []
        with context(), torch.no_grad():
            cotangents = _cotangents(_outputs(call(*inputs)))
        return Runner(
            lambda: torch.autograd.grad(_outputs(call(*inputs)), leaves, cotangents, allow_unused=True), inputs, context
        )
    parameters = list(module.parameters())
    with torch.no_grad(), fastsr.backend("reference"):
        shape = module(inputs[0]).shape
    target = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].device) * case.white
    half = TORCH_DTYPES[case.dtype] if case.autocast else None

    def run() -> Any:
        if half is None:
            sr = call(*inputs)
        else:
            with torch.autocast(inputs[0].device.type, half, cache_enabled=False):
                sr = call(*inputs)
        return torch.autograd.grad(F.l1_loss(sr.float(), target), parameters)

    return Runner(run, inputs, context)


_DIRECTIONS = {"forward": _forward, "backward": _backward, "step": _step}


def _graphed(runner: Runner) -> Runner:
    """`runner` captured in a CUDA graph; a replay reads the inputs where they were."""
    held: dict[str, Any] = {}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with runner.context(), torch.cuda.stream(stream):
        for _ in range(3):
            runner.prepare()
            runner.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with runner.context(), torch.cuda.graph(graph):
        runner.prepare()
        held["result"] = runner.run()

    def replay() -> Any:
        graph.replay()
        return held["result"]

    return Runner(replay, runner.inputs, runner.context)


def _context(peer: Peer, case: Case, device: torch.device) -> Context:
    @contextmanager
    def context() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(fastsr.backend(peer.backend))
            if peer.shifted:
                stack.enter_context(_replaced("_depthwise", shifted_depthwise))
            if peer.forced_copies:
                stack.enter_context(_replaced("pixel_norm", _copying_pixel_norm))
            if device.type == "cuda":
                stack.enter_context(cuda_precision("tf32" if case.dtype == "tf32" else "ieee"))
            if peer.compile and case.direction == "backward":  # or the graph could not be kept for the next run
                stack.enter_context(torch._functorch.config.patch(donated_buffer=False))
            yield

    return context


@contextmanager
def cuda_precision(precision: str) -> Iterator[None]:
    """float32 products in TF32 or not, and cuDNN's search for the fastest algorithm."""
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        for place in places:
            place.fp32_precision = precision
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


@contextmanager
def _replaced(name: str, function: Callable[..., Tensor]) -> Iterator[None]:
    """A function of fastsr.reference replaced by another form of the same mathematics."""
    original = getattr(reference, name)
    setattr(reference, name, function)
    try:
        yield
    finally:
        setattr(reference, name, original)


def shifted_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int | None = None
) -> Tensor:
    """A depthwise convolution as shifted multiply-adds, which a compiler can fuse with what surrounds it."""
    if stride != 1:
        return _depthwise(x, weight, bias, stride, padding)
    kh, kw = weight.shape[-2:]
    ph, pw = (kh // 2, kw // 2) if padding is None else (padding, padding)
    padded = F.pad(x, (pw, pw, ph, ph))
    h, w = padded.shape[2] - kh + 1, padded.shape[3] - kw + 1
    taps = weight[:, 0, :, :, None, None]  # [C, kh, kw, 1, 1]
    y = taps[:, 0, 0] * padded[:, :, :h, :w]
    for i in range(kh):
        for j in range(kw):
            if i or j:
                y = y + taps[:, i, j] * padded[:, :, i : i + h, j : j + w]
    return y if bias is None else y + bias[:, None, None]


def _copying_pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """The official code's form: its ALKConv ends in `permute(...).contiguous()`."""
    return _pixel_norm(x, weight, bias, eps).contiguous()


_depthwise, _pixel_norm = reference._depthwise, reference.pixel_norm
