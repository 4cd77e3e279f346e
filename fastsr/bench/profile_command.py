"""What `fastsr profile` does with its options."""

from __future__ import annotations

import argparse
import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

import fastsr
from fastsr._files import atomic_write
from fastsr.bench import text
from fastsr.bench.cases import TORCH_DTYPES
from fastsr.bench.machine import ceilings, environment, timed_device
from fastsr.bench.peers import cuda_precision
from fastsr.bench.profile import (
    Entry,
    draw_timeline,
    floors,
    memory_timeline,
    profile,
    step_of,
    with_floors,
)
from fastsr.bench.registry import DTYPES, nearest, parse_size
from fastsr.errors import InputError

_NAME = 70  # characters of a kernel's name that are shown


def run(arguments: argparse.Namespace) -> int:
    """Profiles, prints two tables and writes the files that were asked for."""
    nearest("dtype", [arguments.dtype], DTYPES)
    device = timed_device(arguments.device)
    precision = "tf32" if arguments.dtype == "tf32" else "ieee"
    with cuda_precision(precision) if device.type == "cuda" else nullcontext():
        _run(arguments, device)
    return 0


def _run(arguments: argparse.Namespace, device: torch.device) -> None:
    batch, height, width = parse_size(arguments.shape or ("4x48x48" if arguments.train else "256x256"))
    dtype = torch.float32 if arguments.train else TORCH_DTYPES[arguments.dtype]
    net: nn.Module = _network(arguments.network, arguments.scale).to(device, dtype)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shape = (batch, getattr(net, "num_in_ch", 3), height, width)
    image = torch.rand(shape, device=device) * getattr(net, "input_range", 1.0)
    image = image.to(dtype, memory_format=torch.channels_last)
    limits = ceilings(device, small=True)
    least = floors(net, shape, limits, arguments.dtype)
    if arguments.train or fastsr.current_backend() != "reference":  # there PyTorch's operators do other work
        least = {name: ms for name, ms in least.items() if not name.startswith("aten::")}
    step = step_of(net, image, arguments.dtype, arguments.train)
    try:
        found = with_floors(profile(net, step, device, trace=arguments.trace), least)
    except OSError as error:
        raise InputError(f"{arguments.trace} cannot be written: {error.strerror or error}") from error
    what = "training step" if arguments.train else "forward"
    title = f"{arguments.network}, {what} at {'x'.join(map(str, (batch, width, height)))}, {arguments.dtype}"
    print(f"{title}: {text.milliseconds(found.ms)} ms in {found.launches:.0f} launches\n")
    print(table("operator", found.operators))
    print()
    print(table("kernel", found.kernels[: arguments.rows]))
    if arguments.json:
        content = {"environment": environment(device), "ceilings": limits, "title": title}
        _write(arguments.json, (json.dumps({**content, **dataclasses.asdict(found)}, indent=1) + "\n").encode())
    if arguments.memory:
        points = memory_timeline(step, device)
        _write(arguments.memory, draw_timeline(points, title))
        print(f"\npeak: {max(size for _, size in points):.0f} MB above the weights; drawn in {arguments.memory}")
    if arguments.trace:
        print(f"trace: {arguments.trace}")


def _network(name: str, scale: int | None) -> nn.Module:
    path = Path(name)
    if path.suffix in (".pth", ".pt", ".safetensors") or path.exists():
        return fastsr.load(path)
    return fastsr.create_model(name, scale=scale)


def table(what: str, entries: list[Entry]) -> str:
    """Aligned columns: name, launches, ms, share, floor, times floor."""
    width = max([len(what), *(min(len(entry.name), _NAME) for entry in entries)])
    lines = [f"{what:<{width}}  launches        ms  share     floor   times"]
    for entry in entries:
        floor = f"{text.milliseconds(entry.floor_ms):>8}  {entry.ms / entry.floor_ms:6.1f}" if entry.floor_ms else ""
        cells = f"{entry.launches:8.0f}  {text.milliseconds(entry.ms):>8}  {entry.share:5.1%}  {floor}"
        lines.append(f"{entry.name[:_NAME]:<{width}}  {cells}".rstrip())
    return "\n".join(lines)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
