"""`fastsr profile`: one forward or training step of a network, operator by operator and kernel by kernel."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

import fastsr
from fastsr import ops
from fastsr._dispatch import FUSIONS, OPERATORS
from fastsr.bench.cases import TORCH_DTYPES
from fastsr.bench.memory import LiveBytes
from fastsr.bench.roofline import Counting, recorded_calls

_PREFIX = "fastsr.ops."
_CONVOLUTION, _CONVOLUTIONS = "aten::convolution", ("aten::mkldnn_convolution", "aten::cudnn_convolution")


@dataclass(frozen=True)
class Entry:
    """One line of a table, for one step.

    Attributes:
        name: of the operator or kernel.
        launches: how often it ran.
        ms: its time; of an operator, with everything that it called.
        share: of all kernels' time.
        floor_ms: the least by the roofline model, None where the model does not tell.
    """

    name: str
    launches: float
    ms: float
    share: float
    floor_ms: float | None = None


@dataclass(frozen=True)
class Profile:
    """What a profile found, per step."""

    kernels: list[Entry]
    operators: list[Entry]
    ms: float
    launches: float


def step_of(net: nn.Module, image: Tensor, dtype: str, training: bool) -> Callable[[], Any]:
    """What is profiled: a forward, or with `training` a forward, an L1 loss and a backward."""
    if not training:
        net.eval().requires_grad_(False)

        def forward() -> Tensor:
            with torch.inference_mode():
                return net(image)

        return forward
    net.train()
    with torch.no_grad():
        target = torch.zeros_like(net(image)).float()
    half = TORCH_DTYPES[dtype] if dtype in ("fp16", "bf16") else None
    parameters = list(net.parameters())

    def step() -> Any:
        with torch.autocast(image.device.type, half, enabled=half is not None):
            sr = net(image)
        return torch.autograd.grad(F.l1_loss(sr.float(), target), parameters)

    return step


@contextmanager
def ranges(net: nn.Module, nvtx: bool) -> Iterator[None]:
    """Names modules and fastsr operators in traces; with `nvtx` also for NVIDIA's tools."""
    with ExitStack() as stack:
        for name in (*OPERATORS, *FUSIONS):
            original = getattr(ops, name)
            stack.callback(setattr, ops, name, original)
            setattr(ops, name, _ranged(_PREFIX + name, original, nvtx))
        for path, module in net.named_modules():
            if path and path.count(".") == 0:
                original = module.forward
                stack.callback(module.__dict__.pop, "forward", None)
                module.forward = _ranged(f"{path} ({type(module).__name__})", original, nvtx)
        yield


def _ranged(name: str, function: Callable[..., Any], nvtx: bool) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if nvtx:
            torch.cuda.nvtx.range_push(name)
        try:
            with record_function(name):
                return function(*args, **kwargs)
        finally:
            if nvtx:
                torch.cuda.nvtx.range_pop()

    return call


def profile(
    net: nn.Module, step: Callable[[], Any], device: torch.device, steps: int = 3, trace: Path | None = None
) -> Profile:
    """Warms `step`, runs it `steps` times under PyTorch's profiler, and writes a Chrome trace if `trace` is given."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with ranges(net, nvtx=cuda):
        for _ in range(3):
            step()
        if cuda:
            torch.cuda.synchronize()
        with torch_profile(activities=activities) as found:
            for _ in range(steps):
                step()
            if cuda:
                torch.cuda.synchronize()
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(trace))
    return _tables(found.key_averages(), cuda, steps)


def _tables(events: Any, cuda: bool, steps: int) -> Profile:
    """Kernels are what ran on the GPU, or on the CPU each operator's own time without the operators it called."""
    kernels: list[tuple[str, int, float]] = []
    operators: list[tuple[str, int, float]] = []
    for event in events:
        ours = event.key.startswith(_PREFIX)
        if event.device_type == DeviceType.CPU:
            if ours or (event.key.startswith("fastsr::") and event.key.endswith("_backward")):
                total = event.device_time_total if cuda else event.cpu_time_total
                operators.append((event.key.removeprefix(_PREFIX).removeprefix("fastsr::"), event.count, total))
            if not cuda and not event.is_user_annotation:
                kernels.append((event.key, event.count, event.self_cpu_time_total))
        elif not event.is_user_annotation:
            kernels.append((event.key, event.count, event.self_device_time_total))
    kernels = [kernel for kernel in kernels if kernel[2] > 0]
    total = sum(us for _, _, us in kernels) or 1.0

    def entries(rows: list[tuple[str, int, float]]) -> list[Entry]:
        found = [Entry(name, count / steps, us / steps / 1e3, us / total) for name, count, us in rows]
        return sorted(found, key=lambda entry: -entry.ms)

    launches = sum(count for _, count, _ in kernels) / steps
    return Profile(entries(kernels), entries(operators), total / steps / 1e3, launches)


def floors(net: nn.Module, shape: tuple[int, ...], limits: dict[str, Any], dtype: str) -> dict[str, float]:
    """The least times in milliseconds of one forward of `net`, by the roofline model.

    Args:
        shape: of the image, [N, C, H, W].
        limits: the machine's ceilings.

    Returns:
        By name: each fastsr operator, "esa"; each of PyTorch's operators on the reference path, "aten::gelu".
    """
    shadow = copy.deepcopy(net).to("meta")
    image = torch.empty(shape, device="meta", dtype=next(shadow.parameters()).dtype)
    with fastsr.backend("reference"), torch.no_grad(), Counting() as counted, recorded_calls() as calls:
        shadow(image)
    plain = [(f"aten::{name}", work) for name, work in counted.by_name.items()]
    found: dict[str, float] = {}
    for name, work in (*calls, *plain):
        floor = work.floor(limits, dtype)
        if floor is not None:
            found[name] = found.get(name, 0.0) + floor[0]
    return found


def with_floors(found: Profile, least: dict[str, float]) -> Profile:
    """Writes floors to the operators, and to kernels that are one operator each."""

    def floored(entry: Entry) -> Entry:
        name = _CONVOLUTION if entry.name in _CONVOLUTIONS else entry.name.removeprefix("fastsr::")
        return dataclasses.replace(entry, floor_ms=least.get(name))

    return Profile([*map(floored, found.kernels)], [*map(floored, found.operators)], found.ms, found.launches)


def memory_timeline(step: Callable[[], Any], device: torch.device) -> list[tuple[str, float]]:
    """(operator, megabytes that live after it) of one step, without the weights and the image.

    On a GPU these are what PyTorch's allocator has given out; on the CPU, the storages that operators made and that
    are still referred to. What a kernel takes inside and gives back is seen on neither.
    """
    step()
    points: list[tuple[str, float]] = []
    cuda = device.type == "cuda"
    base = torch.cuda.memory_allocated(device) if cuda else 0

    def after(name: str) -> None:
        now = torch.cuda.memory_allocated(device) - base if cuda else live.now
        points.append((name, now / 2**20))

    with LiveBytes(after) as live:
        result = step()
    del result
    return points


def draw_timeline(points: list[tuple[str, float]], title: str) -> bytes:
    """The timeline as a PNG, with the operator at the peak named."""
    from fastsr.bench.plots import Figure, png

    figure = Figure(figsize=(10, 4.5))
    axes = figure.add_subplot()
    sizes = [size for _, size in points]
    axes.fill_between(range(len(sizes)), sizes, step="post", color="#0a6e6e", alpha=0.35)
    axes.step(range(len(sizes)), sizes, where="post", color="#0a6e6e", lw=1)
    top = max(range(len(sizes)), key=lambda i: sizes[i])
    axes.plot(top, sizes[top], "o", color="#b00020")
    axes.annotate(
        f"{sizes[top]:.0f} MB after {points[top][0]}",
        (top, sizes[top]),
        xytext=(0, 8),
        textcoords="offset points",
        ha="right" if top > len(sizes) / 2 else "left",
        fontsize=9,
    )
    axes.set(
        xlabel="operators called",
        ylabel="MB",
        title=title,
        xlim=(0, max(len(sizes) - 1, 1)),
        ylim=(0, 1.15 * max(sizes[top], 1e-9)),
    )
    axes.grid(True, alpha=0.3)
    return png(figure)
