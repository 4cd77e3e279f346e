"""CUDA graphs of a network's calls, for `freeze(..., cuda_graph=True)`.

On a GPU a network of small kernels waits for the processor that launches them one by one. A graph holds a whole call,
recorded once for a shape, and is launched at once. It reads and writes memory at fixed addresses: images are copied
into a buffer of the graph and results out of one, so that they are the caller's own.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from fastsr import _device, _gelu
from fastsr._dispatch import current_backend
from fastsr._export import exporting
from fastsr._transforms import transformed
from fastsr.errors import BackendError, FastsrError

DEVICES: tuple[str, ...] = ("cuda",)  # tests without a GPU put fakes in the place of Turns and Capture and add "cpu"
WARM_UPS = 2  # calls before the recorded one: kernels are compiled and libraries make their workspaces

Call = Callable[[Tensor], Tensor]
Devices = dict[torch.device, "tuple[Turns, OrderedDict[Hashable, Capture]]"]


class Turns:
    """Lets the calls on one device go one after another: its graphs share memory (`pool`).

    The lock orders the threads that launch, the event the streams that run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self.pool: Any = torch.cuda.graph_pool_handle()
            self._done = torch.cuda.Event()
        self._lock = threading.Lock()
        self._guard = torch.cuda.device(device)

    def __enter__(self) -> Turns:
        self._lock.acquire()
        try:
            self._guard.__enter__()
            torch.cuda.current_stream().wait_event(self._done)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._done.record(torch.cuda.current_stream())
            self._guard.__exit__(*error)
        finally:
            self._lock.release()

    def wait(self) -> None:
        """Until the last call has run, so that memory it uses may be given back."""
        self._done.synchronize()


class Capture:
    """One call of `function` as a graph, for images like `x`. Made and called within the device's turn."""

    def __init__(self, function: Call, x: Tensor, turns: Turns) -> None:
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(False), torch.no_grad():  # buffers may then be written to in any mode
            with torch.cuda.stream(stream):
                self._x = torch.zeros_like(x)
                for _ in range(WARM_UPS):
                    function(self._x)
            # It waits for the device first. Other threads may use the device meanwhile.
            with torch.cuda.graph(self._graph, turns.pool, stream, capture_error_mode="thread_local"):
                self._y = function(self._x)

    def __call__(self, x: Tensor) -> Tensor:
        self._x.copy_(x)
        self._graph.replay()
        return self._y.clone()


class GraphedCalls:
    """`function` by CUDA graphs, one for every kind of image that it is called with, at most `limit` on a device.

    The image is the only argument, under any name; under another one it is recorded once more.

    Calls that cannot be recorded, or do not need to be, are passed on: images on other devices, with gradients or
    without elements, calls within another capture, under torch.compile and torch.func, in exports, and while there are
    forward hooks, on modules of `function` or global ones, which a graph would not call. A copy begins without graphs.

    Raises:
        BackendError: the call cannot be captured.
    """

    def __init__(self, function: nn.Module, limit: int) -> None:
        self.function = function
        self.limit = limit
        self._lock = threading.Lock()
        self._hooks: list[dict[int, Any]] | None = None  # of all modules; they stay the same objects
        self._devices: Devices = {}
        # Whoever drops this waits as well. Not at exit, when CUDA may be gone and frees all by itself.
        weakref.finalize(self, _free, self._devices).atexit = False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        (x,) = (*args, *kwargs.values())
        if not self._records(x) or self._observed():
            y: Tensor = self.function(*args, **kwargs)
            return y
        with self._lock:
            if x.device not in self._devices:
                self._devices[x.device] = Turns(x.device), OrderedDict()
            turns, captures = self._devices[x.device]
        (name,) = kwargs or (None,)
        key = name, _key(x)
        with turns:
            if key not in captures:
                while len(captures) >= self.limit:
                    turns.wait()
                    captures.popitem(last=False)
                captures[key] = self._capture(x, name, turns)
            captures.move_to_end(key)
            return captures[key](x)

    def clear(self) -> None:
        """Forget all graphs; to be called when weights have moved."""
        with self._lock:
            _free(self._devices)

    def __reduce__(self) -> tuple[type[GraphedCalls], tuple[nn.Module, int]]:
        return GraphedCalls, (self.function, self.limit)

    def _records(self, x: Any) -> bool:
        if torch.compiler.is_compiling() or exporting() or transformed():
            return False
        if not isinstance(x, Tensor) or x.device.type not in DEVICES or x.numel() == 0:
            return False
        if torch.is_grad_enabled() and x.requires_grad:
            return False
        return x.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()

    def _observed(self) -> bool:
        if self._hooks is None:
            modules = list(self.function.modules())
            self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        everywhere = nn.modules.module
        if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
            return True
        return any(observes(hook) for hooks in self._hooks for hook in hooks.values())

    def _capture(self, x: Tensor, name: str | None, turns: Turns) -> Capture:
        function = self.function
        try:
            return Capture(function if name is None else lambda image: function(**{name: image}), x, turns)
        except (torch.OutOfMemoryError, FastsrError):
            raise
        except RuntimeError as error:
            raise BackendError(
                f"freeze: a call with an image {list(x.shape)} on {x.device} could not be captured as a CUDA graph: "
                f"{error}; freeze without cuda_graph"
            ) from error


def _free(devices: Devices) -> None:
    """Let go of all graphs when the last call has run: what they read and write is used again by whoever asks next."""
    for turns, captures in devices.values():
        with turns:
            turns.wait()
            captures.clear()
    devices.clear()


def observes(hook: Any) -> bool:
    """Whether a forward hook must run at every call; those of `fastsr.accelerate` only rename an argument."""
    return bool(getattr(hook, "observes", True))


def _key(x: Tensor) -> Hashable:
    """All that a recorded call depends on, but for the values in `x` and the weights."""
    kind = x.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    tf32 = _device.allows_tf32(x)
    return x.shape, x.stride(), x.dtype, autocast, current_backend(), _gelu.current_gelu(), tf32
