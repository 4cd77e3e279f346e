"""A limit for the time that a peer may take to be made ready: torch.compile can take minutes on a CPU."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch


class TooSlow(BaseException):
    """No Exception, because PyTorch's compiler catches those and goes on in another way."""


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raises TooSlow in what it encloses after `seconds`, as soon as Python gets a turn.

    By SIGALRM, so without effect outside the main thread and where that signal does not exist.
    """
    possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not possible:
        yield
        return
    rang = False

    def ring(_: int, __: FrameType | None) -> None:
        nonlocal rang
        rang = True
        raise TooSlow(f"not ready within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except BaseException as error:
        if rang and not isinstance(error, TooSlow):  # wrapped by somebody on its way
            raise TooSlow(f"not ready within {seconds:g} s") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if rang:
            _end_compilers()


def _end_compilers() -> None:
    """What a compiler has begun would disturb the peers that are timed next: waits for it, and gives up the rest."""
    torch._dynamo.reset()
    with contextlib.suppress(Exception):  # not a public interface
        from torch._inductor.async_compile import AsyncCompile, shutdown_compile_workers

        AsyncCompile.pool().shutdown(wait=True, cancel_futures=True)
        AsyncCompile.pool.cache_clear()
        shutdown_compile_workers()
