"""Around a run: PyTorch's settings as the recipe wants them, and signals that ask it to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

import fastsr
from fastsr.train.recipe import Compute

__all__ = ["Signals", "settings"]


@contextlib.contextmanager
def settings(compute: Compute) -> Iterator[None]:
    """PyTorch's process-wide settings as the recipe wants them, and as they were afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    tf32 = matmul.allow_tf32, cudnn.allow_tf32
    if compute.threads:
        torch.set_num_threads(compute.threads)
    torch.use_deterministic_algorithms(compute.deterministic)
    matmul.allow_tf32 = cudnn.allow_tf32 = compute.precision == "tf32"
    try:
        with fastsr.backend(compute.backend):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        matmul.allow_tf32, cudnn.allow_tf32 = tf32


class Signals:
    """Turns SIGINT and SIGTERM into a wish to stop; a second Ctrl-C interrupts at once. A context."""

    def __init__(self) -> None:
        self.stop = False
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, _: FrameType | None) -> None:
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
