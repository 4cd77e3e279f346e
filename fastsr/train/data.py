"""Pairs of patches for training, the same whatever the number of workers and processes.

Sample n of a run (0, 1, 2, ...) is a function of the seed and of n alone: image n of endless shuffled rounds, and
a crop, flips and a rotation drawn from a generator seeded with (seed, n). Step t of a run takes samples t * batch to
(t + 1) * batch - 1, and process r of p every p-th of them, so that a position in the data is a number of steps.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fastsr.errors import ImageError, InputError
from fastsr.train.recipe import Data
from fastsr.train.sources import BicubicSource, Pixels, Source, open_source

__all__ = ["PatchDataset", "make_loader", "open_pairs"]

log = logging.getLogger(__name__)
_ROUND, _CUT = 0, 1  # streams of random numbers
# A forked worker sees the images that its parent decoded; elsewhere each worker decodes for itself.
_FORK = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()


class PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """Sample n as uint8 tensors: LR [3, patch, patch] and HR [3, patch * scale, patch * scale].

    Decoded images are kept up to the budget: those that `fill` reads are shared by all forked workers, and a worker
    that starts without them keeps its own in its share of the budget.
    """

    def __init__(self, hr: Source, lr: Source, keys: list[str], scale: int, data: Data, seed: int) -> None:
        self.hr, self.lr, self.keys = hr, lr, keys
        self.scale, self.data, self.seed = scale, data, seed
        self.bad: set[str] = set()
        self._cache: dict[str, tuple[Pixels, Pixels]] = {}
        self._left = data.cache_mib * 2**20
        self._filled = False

    def __getstate__(self) -> dict[str, object]:
        """For a worker that is not forked: without the images."""
        share = self.data.cache_mib * 2**20 // max(self.data.workers, 1)
        return {**self.__dict__, "_cache": {}, "_left": share, "_filled": False}

    def fill(self) -> None:
        """Reads every image once, in threads: makes what LR images are missing, finds those that are bad, keeps the
        decoded ones within the budget."""
        threads = min(8, os.cpu_count() or 1)
        keys, size = iter(self.keys), 0
        with ThreadPoolExecutor(threads) as pool:
            while part := list(islice(keys, 4 * threads)):  # a part at a time, because results wait in memory
                for key, found in zip(part, pool.map(self._read, part), strict=True):
                    if isinstance(found, ImageError):
                        self.skip(key, found)
                    else:
                        size += sum(image.nbytes for image in found)
                        self._keep(key, found)
        if len(self._cache) < len(self.keys) - len(self.bad):
            log.warning(
                "%d of %d images fit into data.cache_mib=%d; the others are decoded for every patch, which is slow: "
                "set it to %d, or cut the images into smaller ones",
                *(len(self._cache), len(self.keys), self.data.cache_mib, -(-size // 2**20)),
            )
        self._filled = True
        self.hr.close()
        self.lr.close()

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        count = len(self.keys)
        order = _shuffled(self.seed, number // count, count)
        for offset in range(count):  # the next in the round stands in for an image that cannot be read
            key = self.keys[order[(number + offset) % count]]
            if key in self.bad:
                continue
            try:
                lr, hr = self.pair(key)
            except ImageError as error:
                self.skip(key, error)
                continue
            return self._cut(lr, hr, np.random.default_rng((self.seed, _CUT, number)))
        raise InputError("none of the training images can be read")

    def skip(self, key: str, error: ImageError) -> None:
        """Leaves an image out, until there are too many of them."""
        self.bad.add(key)
        if len(self.bad) > self.data.max_bad_images:
            raise InputError(
                f"{len(self.bad)} training images cannot be read, more than "
                f"data.max_bad_images={self.data.max_bad_images}; the last: {error}"
            ) from error
        log.warning("skipped: %s", error)

    def pair(self, key: str) -> tuple[Pixels, Pixels]:
        """A whole LR image and its HR image, from memory if the budget held them."""
        if key in self._cache:
            return self._cache[key]
        found = self._read(key)
        if isinstance(found, ImageError):
            raise found
        if not self._filled:  # or every worker would fill what is left of the budget
            self._keep(key, found)
        return found

    def _read(self, key: str) -> tuple[Pixels, Pixels] | ImageError:
        try:
            hr = self.hr.read(key)
            lr = self.lr.reduce(key, hr) if isinstance(self.lr, BicubicSource) else self.lr.read(key)
        except ImageError as error:
            return error
        self._check(key, lr, hr)
        return lr, hr

    def _keep(self, key: str, found: tuple[Pixels, Pixels]) -> None:
        size = sum(image.nbytes for image in found)
        if size <= self._left:
            self._left -= size
            self._cache[key] = found

    def check_size(self, key: str) -> None:
        """What the headers tell of a pair that does not fit, before any time goes into decoding."""
        hr, lr = self.hr.size(key), self.lr.size(key)
        if hr is not None:
            self._check_sizes(key, lr or (hr[0] // self.scale, hr[1] // self.scale), hr)

    def _check(self, key: str, lr: Pixels, hr: Pixels) -> None:
        self._check_sizes(key, lr.shape[:2], hr.shape[:2])

    def _check_sizes(self, key: str, lr: tuple[int, ...], hr: tuple[int, ...]) -> None:
        height, width = hr[0] // self.scale, hr[1] // self.scale
        if tuple(lr) != (height, width):
            raise InputError(
                f"{self.lr.where(key)} is {lr[1]}x{lr[0]} (width x height); at scale {self.scale} "
                f"{self.hr.where(key)} of {hr[1]}x{hr[0]} needs one of {width}x{height}"
            )
        if min(height, width) < self.data.patch:
            least = self.data.patch * self.scale
            raise InputError(
                f"{self.hr.where(key)} is {hr[1]}x{hr[0]}; patches of data.patch={self.data.patch} "
                f"at scale {self.scale} need at least {least}x{least}, so leave it out or take smaller patches"
            )

    def _cut(self, lr: Pixels, hr: Pixels, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        patch, scale = self.data.patch, self.scale
        top = int(rng.integers(lr.shape[0] - patch + 1))
        left = int(rng.integers(lr.shape[1] - patch + 1))
        flip, mirror, turn = (bool(x) for x in rng.integers(2, size=3))

        def cut(image: Pixels, factor: int) -> Tensor:
            side = patch * factor
            piece = image[top * factor : top * factor + side, left * factor : left * factor + side]
            if self.data.flip:
                piece = piece[:: -1 if flip else 1, :: -1 if mirror else 1]
            if self.data.rotate and turn:
                piece = piece.swapaxes(0, 1)
            return torch.from_numpy(np.ascontiguousarray(piece.transpose(2, 0, 1)))

        return cut(lr, 1), cut(hr, scale)


@lru_cache(maxsize=4)
def _shuffled(seed: int, turn: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, _ROUND, turn)).permutation(count)


class _Share(Sampler[int]):
    """The numbers of the samples that one process takes, from step `start` to step `stop`."""

    def __init__(self, start: int, stop: int, batch: int, rank: int, world: int) -> None:
        self.range = range(start * batch + rank, stop * batch, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.range)

    def __len__(self) -> int:
        return len(self.range)


def open_pairs(data: Data, scale: int, seed: int, *, make: bool = True) -> PatchDataset:
    """The training images of a recipe, checked one by one; bicubic LR images that are missing are made.

    Args:
        make: read every image now, which makes the LR images. Only one process may do it at a time.

    Raises:
        InputError: a folder is missing, HR and LR do not match, or an image is smaller than a patch.
    """
    hr = open_source(data.hr)
    lr = BicubicSource(hr, scale, Path(data.lr_cache)) if data.lr is None else _Partners(open_source(data.lr), scale)
    keys = list(hr.keys) if data.meta_info is None else _listed(Path(data.meta_info), hr)
    for key in keys if isinstance(lr, _Partners) else ():
        lr.where(key)
    dataset = PatchDataset(hr, lr, keys, scale, data, seed)
    for key in keys if make else ():
        dataset.check_size(key)
    if make:
        dataset.fill()
    return dataset


def make_loader(
    dataset: PatchDataset, *, start: int, stop: int, batch: int, parts: int = 1, rank: int = 0, world: int = 1
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of one process from step `start` to `stop`, `parts` of them for each step."""
    workers = dataset.data.workers
    return DataLoader(
        dataset,
        batch_size=batch // world // parts,
        sampler=_Share(start, stop, batch, rank, world),
        num_workers=workers,
        multiprocessing_context="fork" if workers and _FORK else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # or the loader would draw from the generator that checkpoints keep
        prefetch_factor=4 if workers else None,
    )


def _start_worker(_: int) -> None:
    """Ctrl-C, timeout and batch systems signal every process: the main one saves, and then it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent(parent: int) -> None:
    """Ends this process when SIGTERM comes from its parent, and only then."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class _Partners(Source):
    """LR images by the keys of their originals: the same name, or the name with "x2" (the scale) after it."""

    def __init__(self, source: Source, scale: int) -> None:
        self.source, self.scale, self.keys = source, scale, source.keys
        self._known = set(source.keys)

    def _partner(self, key: str) -> str:
        for name in (key, f"{key}x{self.scale}"):
            if name in self._known:
                return name
        raise InputError(
            f"data.lr holds no LR image for {key}, only such as {self.keys[0]}; "
            f"it must be named {key} or {key}x{self.scale}"
        )

    def read(self, key: str) -> Pixels:
        return self.source.read(self._partner(key))

    def close(self) -> None:
        self.source.close()

    def size(self, key: str) -> tuple[int, int] | None:
        return self.source.size(self._partner(key))

    def where(self, key: str) -> str:
        return self.source.where(self._partner(key))


def _listed(path: Path, hr: Source) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.meta_info {path} cannot be read: {error}") from error
    keys = [Path(line.split()[0]).with_suffix("").as_posix() for line in lines if line.strip()]
    if not keys:
        raise InputError(f"data.meta_info {path} lists no images")
    known = set(hr.keys)
    for key in keys:
        if key not in known:
            raise InputError(f"data.meta_info {path} lists {key}, which data.hr does not hold")
    return keys
