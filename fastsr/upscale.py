"""Running a network: on a tensor, on an image, on a file or a tree of files.

Tiling is for images that do not fit in memory. It is not exact on these networks: CCA takes its statistics
over the whole image and ESA resizes a map to the image's size, so a tile sees other numbers than the image.
"""

from __future__ import annotations

import logging
import numbers
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastsr.errors import ImageError, InputError
from fastsr.imageio import SUFFIXES, Image, is_image_path, read_image, write_image
from fastsr.imresize import imresize

if TYPE_CHECKING:
    from fastsr.models import SuperResolutionNet

__all__ = ["Report", "is_out_of_memory", "upscale_image", "upscale_path", "upscale_tensor"]

_SMALLEST_TILE = 32
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What `upscale_path` did.

    Attributes:
        written: the outputs that were written.
        skipped: the outputs that were there already.
        failed: the inputs without an output, each with the reason.
    """

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The number of inputs."""
        return len(self.written) + len(self.skipped) + len(self.failed)


def upscale_tensor(
    net: SuperResolutionNet,
    x: Tensor,
    *,
    tile: int = 0,
    tile_pad: int = 16,
    self_ensemble: bool = False,
    retry: bool = True,
) -> Tensor:
    """Upscales a batch under `torch.inference_mode`.

    Args:
        net: a network of fastsr; it is not switched to eval mode here.
        x: [N, 3, H, W] with values 0..`net.input_range`; moved to the device and dtype of the network.
        tile: 0 for the whole image at once; otherwise the longest side, in input pixels, that one run answers
            for. Tiles change the result, because these networks use statistics of the whole image.
        tile_pad: input pixels that a tile sees beyond its own on each side, where the image has them.
        self_ensemble: the mean over the 8 flips and rotations; 8 times the work for about 0.1 dB.
        retry: when memory runs out, start again in tiles, halved until they fit, and warn in the log.

    Returns:
        [N, 3, H * scale, W * scale], not clamped, on the network's device; float32, for a float64 network
        float64.

    Raises:
        InputError: `x` is no tensor or of another shape, the image is smaller than `net.min_size`, or an option is
            no whole number or negative.
        ImageError: memory ran out, and `retry` is off or the smallest tiles do not fit either.
    """
    _check(net, x, tile, tile_pad)
    parameter = next(net.parameters(), x)
    x = x.to(device=parameter.device, dtype=parameter.dtype)
    with torch.inference_mode():
        size = tile
        while True:
            try:
                result = (_ensemble if self_ensemble else _tiled)(net, x, size, tile_pad)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # outside the handler: the traceback would keep the failed attempt's tensors alive
            size = _smaller_tile(net, x, size, retry)
            if x.is_cuda:
                torch.cuda.empty_cache()
    if size != tile:
        log.warning(
            "An image of %dx%d did not fit in memory: it was run in tiles of %d, which changes it slightly.",
            *x.shape[-2:],
            size,
        )
    return result


@torch.inference_mode()
def upscale_image(
    net: SuperResolutionNet,
    image: Image,
    *,
    tile: int = 0,
    tile_pad: int = 16,
    self_ensemble: bool = False,
    retry: bool = True,
) -> Image:
    """Upscales an image; the result has its depth, greyness, transparency and colour profile.

    The output of the network is clamped and rounded. A grey image is run as three equal channels whose mean
    is taken; alpha is enlarged by `imresize`. For the options and the other errors see `upscale_tensor`.

    Raises:
        ImageError: the network returned values that are not finite, as half precision may.
    """
    to_pixels = image.peak / net.input_range
    pixels = torch.from_numpy(image.rgb.astype(np.float32))
    x = pixels.permute(2, 0, 1).unsqueeze(0) / to_pixels
    y = upscale_tensor(net, x, tile=tile, tile_pad=tile_pad, self_ensemble=self_ensemble, retry=retry)[0]
    if not y.isfinite().all():
        dtype = str(next(net.parameters(), y).dtype).removeprefix("torch.")
        raise ImageError(
            f"the network returned values that are not finite in {dtype}; run it in float32 or check its weights"
        )
    y = y.clamp_(0, net.input_range)
    if image.grey:
        y = y.mean(0, keepdim=True).expand(3, -1, -1)
    rgb = (y * to_pixels).round_().permute(1, 2, 0).cpu().numpy().astype(image.rgb.dtype)
    alpha = None if image.alpha is None else imresize(image.alpha, scale=net.scale)
    return Image(np.ascontiguousarray(rgb), alpha, image.grey, image.icc)


def upscale_path(
    net: SuperResolutionNet,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    suffix: str | None = None,
    ext: str = "auto",
    overwrite: bool = False,
    tile: int = 0,
    tile_pad: int = 16,
    self_ensemble: bool = False,
    progress: bool = True,
) -> Report:
    """Upscales an image file, or every image in a folder and the folders below it.

    A folder becomes a folder with the same tree, of files named `{name}_{suffix}.{ext}`. If `target` lies
    inside the source folder, what it holds is not taken as input. One bad image does not stop the others.

    Args:
        source: an image file or a folder.
        target: a folder; for a single file also the name of the output, taken as it is.
        suffix: what is appended to the name; None for "x2" and the like, "" for nothing.
        ext: the format of the outputs, such as "png"; "auto" for that of the input.
        overwrite: write outputs that exist already, instead of skipping them.
        progress: show a bar on a terminal.

    Raises:
        InputError: the source is missing or holds no images, the target is the source folder or a file in
            the way, one of them an empty name, or an option is not as above.
    """
    for name, given in (("source", source), ("target", target)):
        if not os.fspath(given):
            raise InputError(f"the {name} is an empty name; pass a file or folder, such as . for the current one")
    source, target = Path(source), Path(target)
    ending = _ending(suffix, f"x{net.scale}", ext)
    plan = _plan_file(source, target, ending) if source.is_file() else _plan_tree(source, target, ending)
    _check_options(tile, tile_pad)
    report = Report()
    uses = Counter(os.path.normcase(output) for _, output in plan)
    inputs = {image.resolve() for image, _ in plan}
    for path, output in tqdm(plan, unit="image", disable=None if progress else True):
        try:
            if uses[os.path.normcase(output)] > 1:
                raise InputError(f"several inputs would be written to {output}; use ext auto or rename them")
            if output.resolve() in inputs:
                raise InputError(f"{output} is itself an input; choose another output folder or a suffix")
            if output.is_file() and not overwrite:
                report.skipped.append(output)
                continue
            image = upscale_image(net, read_image(path), tile=tile, tile_pad=tile_pad, self_ensemble=self_ensemble)
            output.parent.mkdir(parents=True, exist_ok=True)
            write_image(output, image)
            report.written.append(output)
        except (ImageError, InputError) as error:
            report.failed[path] = str(error)
        except OSError as error:
            report.failed[path] = f"{output} cannot be written ({error.strerror or error}); choose another output"
        except MemoryError:
            report.failed[path] = "the image does not fit in memory; pass --tile"
    return report


def _check_options(tile: int, tile_pad: int) -> None:
    if not (isinstance(tile, numbers.Integral) and isinstance(tile_pad, numbers.Integral)) or tile < 0 or tile_pad < 0:
        raise InputError(f"tile and tile_pad are whole pixels, 0 or more, got {tile!r} and {tile_pad!r}")


def _check(net: SuperResolutionNet, x: Tensor, tile: int, tile_pad: int) -> None:
    _check_options(tile, tile_pad)
    if not isinstance(x, Tensor):
        raise InputError(f"the network takes a tensor [N, {net.num_in_ch}, H, W], got a {type(x).__name__}")
    if x.ndim != 4 or x.shape[1] != net.num_in_ch or not x.is_floating_point():
        raise InputError(
            f"the network takes floating point [N, {net.num_in_ch}, H, W], got {x.dtype} of shape {tuple(x.shape)}"
        )
    least = net.min_size
    height, width = x.shape[-2:]
    if min(height, width) < least:
        raise InputError(
            f"the image is {height}x{width} (height x width) and the network needs at least {least}x{least}; "
            f"pad the image to that size first"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the machine."""
    text = str(error).lower()
    known = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, known) or any(phrase in text for phrase in _OUT_OF_MEMORY)


def _smaller_tile(net: SuperResolutionNet, x: Tensor, tile: int, retry: bool) -> int:
    """The tile to try after `tile` (0: the whole image) ran out of memory."""
    height, width = x.shape[-2:]
    if not retry:
        raise ImageError(f"an image of {height}x{width} does not fit in memory; use a device with more")
    longest = max(height, width)
    current = min(tile, longest) if tile else longest
    smallest = max(_SMALLEST_TILE, net.min_size)
    if current <= smallest:
        raise ImageError(
            f"an image of {height}x{width} does not fit in memory even in tiles of {current} pixels; "
            f"free memory or use another device"
        )
    return max(-(-current // 2), smallest)


def _ensemble(net: SuperResolutionNet, x: Tensor, tile: int, pad: int) -> Tensor:
    """The mean over the dihedral group: four rotations, each also mirrored."""
    total: Tensor | None = None
    for mirrored in (False, True):
        for turns in range(4):
            view = torch.rot90(x.flip(-1) if mirrored else x, turns, (-2, -1))
            y = torch.rot90(_tiled(net, view.contiguous(), tile, pad), -turns, (-2, -1))
            y = y.flip(-1) if mirrored else y
            total = y.contiguous() if total is None else total.add_(y)
    assert total is not None
    return total.div_(8)


def _tiled(net: SuperResolutionNet, x: Tensor, tile: int, pad: int) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    if tile == 0:
        whole: Tensor = net(x).to(wide)
        return whole
    scale, least = net.scale, net.min_size
    height, width = x.shape[-2:]
    result = x.new_empty((*x.shape[:2], height * scale, width * scale), dtype=wide)
    for rows in _windows(height, tile, pad, least):
        for columns in _windows(width, tile, pad, least):
            y = net(x[..., rows.seen, columns.seen].contiguous())
            result[..., rows.at(scale), columns.at(scale)] = y[..., rows.kept(scale), columns.kept(scale)]
    return result


@dataclass(frozen=True)
class _Window:
    """One tile along one axis, in input pixels: it sees `seen` and answers for [start, stop)."""

    seen: slice
    start: int
    stop: int

    def at(self, scale: int) -> slice:
        """Its own pixels in the output."""
        return slice(self.start * scale, self.stop * scale)

    def kept(self, scale: int) -> slice:
        """The same pixels in the output of the tile."""
        first: int = self.seen.start
        return slice((self.start - first) * scale, (self.stop - first) * scale)


def _windows(size: int, tile: int, pad: int, least: int) -> list[_Window]:
    """Covers an axis with tiles of one length, shifted inward at the borders instead of being cut there.

    One length for all keeps the networks' size-dependent parts the same, never falls below `least`, and
    leaves a compiled or captured network a single shape.
    """
    count = -(-size // tile)
    own = -(-size // count)  # an even share: the last tile would else be a sliver
    seen = min(size, max(own + 2 * pad, least))
    windows = []
    for start in range(0, size, own):
        first = min(max(start - pad, 0), size - seen)
        windows.append(_Window(slice(first, first + seen), start, min(start + own, size)))
    return windows


def _ending(suffix: str | None, default: str, ext: str) -> Callable[[Path], str]:
    """How the name of an output is made from the path of its input."""
    suffix = default if suffix is None else suffix
    if "/" in suffix or "\\" in suffix:
        raise InputError(f"the suffix {suffix!r} goes into file names and cannot hold a path")
    wanted = ext if ext == "auto" else f".{ext.removeprefix('.')}"
    if ext != "auto" and wanted.lower() not in SUFFIXES:
        accepted = ", ".join(name[1:] for name in SUFFIXES)
        raise InputError(f"the output format is auto or one of {accepted}, got {ext!r}")

    def name(path: Path) -> str:
        extension = path.suffix if wanted == "auto" else wanted
        return f"{path.stem}_{suffix}{extension}" if suffix else f"{path.stem}{extension}"

    return name


def _plan_file(source: Path, target: Path, name: Callable[[Path], str]) -> list[tuple[Path, Path]]:
    as_folder = target.is_dir() or not target.suffix
    output = target / name(source) if as_folder else target
    if not is_image_path(output):
        raise InputError(f"the output {output} must end in one of {', '.join(SUFFIXES)}, or be a folder that exists")
    return [(source, output)]


def _plan_tree(source: Path, target: Path, name: Callable[[Path], str]) -> list[tuple[Path, Path]]:
    if not source.is_dir():
        raise InputError(f"{source} is neither a file nor a folder; give an image or a folder of images")
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; for a folder of images the output must be a folder")
    root, inside = source.resolve(), target.resolve()
    if root == inside:
        raise InputError(f"{target} is the input folder itself, where results would become inputs; name another folder")
    images = sorted(path for path in source.rglob("*") if is_image_path(path) and path.is_file())
    if root in inside.parents:
        images = [path for path in images if inside not in path.resolve().parents]
    if not images:
        raise InputError(f"{source} holds no images; fastsr reads {', '.join(SUFFIXES)}")
    return [(path, target / path.relative_to(source).parent / name(path)) for path in images]
