"""`fastsr bench ntire`: the measurement of the NTIRE efficient super-resolution challenges.

As their test code does it: each low-resolution image through the network at scale 4 on its own, the mean of the times
(CUDA events, on a CPU the clock), the highest memory that PyTorch had allocated on the GPU, and parameters,
multiply-adds (which the challenges call FLOPs), activations and convolutions at 256x256. Unlike theirs, every size of
image is run once before it is timed.

The score is by the formula of the challenge of 2025: exp(2 x / baseline) of runtime, FLOPs and parameters, weighted
0.7, 0.15 and 0.15; less is better. The baseline is that of 2023 and 2024, RLFN's challenge variant, in plain PyTorch
in the same run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from tqdm import tqdm

import fastsr
from fastsr.bench.machine import environment
from fastsr.bench.measure import time_cpu
from fastsr.bench.registry import nearest
from fastsr.errors import InputError

SCALE = 4
NETWORKS = ("rlfn_ntire", "mlrn_ntire", "rlfn", "mlrn", "bsrn", "alkdnet")
BASELINE = "rlfn_ntire"
WEIGHTS = {"ms": 0.7, "macs": 0.15, "params": 0.15}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def read_images(folder: Path) -> list[tuple[str, Tensor]]:
    """(name, [1, 3, H, W] in 0..1) of every image in a folder, in the order of their names.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; pass the one with the low-resolution images")
    images = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        try:
            with PIL.Image.open(path) as picture:
                pixels = np.array(picture.convert("RGB"))
        except OSError as error:
            raise InputError(f"{path} cannot be read as an image: {error}") from error
        images.append((path.name, torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float() / 255))
    if not images:
        raise InputError(f"{folder} holds no image ({', '.join(SUFFIXES)})")
    return images


def measure(folder: Path, device: torch.device, names: list[str] | None = None) -> dict[str, Any]:
    """The challenge's figures of each network, by fastsr and in plain PyTorch.

    Args:
        names: of NETWORKS, all by default; the baseline is measured in any case.

    Raises:
        InputError: an unknown name, or no images.
    """
    nearest("challenge network", names or [], NETWORKS)
    images = read_images(folder)
    chosen = [name for name in NETWORKS if not names or name in names or name == BASELINE]
    rows = []
    for name, backend in tqdm(list(_runs(chosen)), desc="fastsr bench ntire", unit="network", disable=None):
        torch.manual_seed(0)
        net = fastsr.create_model(name, scale=SCALE).eval().requires_grad_(False).to(device)
        counts = fastsr.complexity(net)._asdict()
        with fastsr.backend(backend), torch.inference_mode():
            times, peak = _run(net, images, device)
        row = {"network": name, "path": "plain" if backend == "reference" else "fastsr", **counts}
        rows.append({**row, "ms": statistics.fmean(times), "times": times, "peak_mb": peak})
    base = next(row for row in rows if row["network"] == BASELINE and row["path"] == "plain")
    for row in rows:
        row["score"] = score(row, base)
    return {"environment": environment(device), "images": [name for name, _ in images], "rows": rows}


def _runs(names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        yield name, "reference"
        yield name, "auto"


def _run(net: nn.Module, images: list[tuple[str, Tensor]], device: torch.device) -> tuple[list[float], float | None]:
    """Milliseconds of each image, and the highest memory in MB (None on a CPU)."""
    cuda, times, warmed = device.type == "cuda", [], set()
    white = float(net.input_range)  # type: ignore[arg-type]
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    for _, image in images:
        lr = (image * white).to(device)
        if lr.shape not in warmed:
            net(lr)
            warmed.add(lr.shape)
        if cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            net(lr)
            end.record()
            torch.cuda.synchronize(device)
            times.append(start.elapsed_time(end))
        else:
            times += time_cpu(lambda lr=lr: net(lr), 1)  # type: ignore[misc]
    return times, torch.cuda.max_memory_allocated(device) / 2**20 if cuda else None


def score(row: dict[str, Any], base: dict[str, Any]) -> float:
    """The weighted score against the baseline's figures; the baseline itself has e^2 = 7.39."""
    return sum(weight * math.exp(2 * row[key] / base[key]) for key, weight in WEIGHTS.items())


def table(found: dict[str, Any]) -> str:
    """The figures as text, best score first."""
    lines = [
        f"{len(found['images'])} images, x{SCALE}, {found['environment']['device']}",
        "network       path        ms    memory  parameters  FLOPs at 256x256  activations  convolutions  score",
    ]
    for row in sorted(found["rows"], key=lambda row: row["score"]):
        peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} MB"
        lines.append(
            f"{row['network']:<12}  {row['path']:<6} {row['ms']:7.2f}  {peak:>8}  {row['params'] / 1e6:8.3f} M"
            f"  {row['macs'] / 1e9:14.2f} G  {row['activations'] / 1e6:9.2f} M  {row['convolutions']:12d}"
            f"  {row['score']:5.2f}"
        )
    return "\n".join(lines)
