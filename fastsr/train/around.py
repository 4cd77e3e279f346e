"""Around a run: PyTorch's settings as the recipe wants them, signals that ask it to stop, and failures in words."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

import fastsr
from fastsr import _env
from fastsr.errors import FastsrError, InputError, TrainingError
from fastsr.train.recipe import Compute
from fastsr.upscale import is_out_of_memory

__all__ = ["Signals", "Stopped", "in_words", "settings"]


@contextlib.contextmanager
def settings(compute: Compute) -> Iterator[None]:
    """PyTorch's process-wide settings as the recipe wants them, and as they were afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    tf32 = matmul.allow_tf32, cudnn.allow_tf32
    if compute.threads:
        torch.set_num_threads(compute.threads)
    if compute.deterministic:
        _env.fix_cublas_workspace()
    torch.use_deterministic_algorithms(compute.deterministic)
    matmul.allow_tf32 = cudnn.allow_tf32 = compute.precision == "tf32"
    try:
        with fastsr.backend(compute.backend):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        matmul.allow_tf32, cudnn.allow_tf32 = tf32


class Stopped(BaseException):
    """A signal came before there was anything to save."""


class Signals:
    """Turns SIGINT and SIGTERM into a wish to stop; a second Ctrl-C interrupts at once. A context.

    Attributes:
        running: set it when steps begin. Before that a signal raises Stopped, because reading the images may take
            minutes and there is nothing to save.
    """

    def __init__(self) -> None:
        self.stop = self.running = False
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, _: FrameType | None) -> None:
        if not self.running:
            raise Stopped
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Failures of the machine, and of the loader's workers, as one sentence.

    Raises:
        TrainingError: memory ran out, or a worker was killed.
        InputError: as a worker raised it.
    """
    try:
        yield
    except InputError as error:  # from a worker it comes with the worker's traceback in its text
        text = str(error)
        if "\nOriginal Traceback" not in text:
            raise
        raise InputError(text.rstrip().rpartition("InputError: ")[2]) from None
    except FastsrError:
        raise
    except (RuntimeError, MemoryError, ConnectionError) as error:
        if is_out_of_memory(error):
            raise TrainingError(
                "a step needs more memory than there is: raise optimizer.accumulate, which keeps the result, or take "
                "smaller patches"
            ) from error
        if isinstance(error, ConnectionError) or "DataLoader worker" in str(error):
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise TrainingError(
                f"a process that loads images ended ({reason}), mostly for want of memory; the checkpoints are kept: "
                "lower data.workers or data.cache_mib, and start again to continue"
            ) from error
        raise
