"""Memory: what a case needs on the reference path, what there is, and the peak of a peer in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastsr
from fastsr.bench.cases import Case
from fastsr.bench.registry import Peer


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all storages that are made inside and still live: `now` and `peak`.

    Args:
        after: called after each operator with its name, for a timeline.
    """

    def __init__(self, after: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._after = after
        self._known: dict[int, int] = {}  # by the storage's address within torch, which lives as long as it does

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        if self._after is not None:
            self._after(str(func))
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


def needed_bytes(case: Case) -> int:
    """What a run of `case` on the reference path holds at its highest, weights and maps included."""
    module = case.build().to("meta", case.tensor_dtype)
    maps = [torch.empty(shape, device="meta", dtype=case.tensor_dtype) for shape in case.shapes]
    backward = case.direction != "forward"
    held = sum(t.numel() * t.element_size() for t in (*maps, *module.parameters()))
    with fastsr.backend("reference"), torch.set_grad_enabled(backward), LiveBytes() as live:
        out = module(*maps)
        if backward:
            outputs = out if isinstance(out, tuple) else (out,)
            torch.autograd.grad(outputs, list(module.parameters()), [torch.empty_like(y) for y in outputs])
    return held + live.peak


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had, None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def too_big(case: Case, device: torch.device) -> str | None:
    """Why `case` does not fit into the memory that is free, or None."""
    free = free_bytes(device)
    if free is None:
        return None
    need = 2 * needed_bytes(case)  # the results it is compared with, and a margin
    if need <= free:
        return None
    return f"needs about {need / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free: pass a smaller --shape"


def _status(field: str) -> float:
    """A line of /proc/self/status in MB: VmRSS (now) or VmHWM (the highest so far)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _measure_here(peer: Peer, small: Case, case: Case) -> dict[str, Any]:
    from fastsr.bench.peers import PeerMissing, make_runner

    device = torch.device("cpu")
    try:
        warm = make_runner(peer, small, device)
        with warm.context():
            warm.prepare()
            warm.run()  # libraries, thread pools and compilers take their memory before the base line
        del warm
        runner = make_runner(peer, case, device)
    except PeerMissing as missing:
        return {"reason": str(missing)}
    fastsr.empty_cache()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    before = _status("VmRSS")
    with runner.context():
        runner.prepare()
        runner.run()
    return {"peak_mb": _status("VmHWM") - before}


def peak_cpu(peer: Peer, case: Case) -> dict[str, Any]:
    """`peak_mb` of a first run above what a process of its own held with its weights loaded, or `reason`."""
    if peer.compile:
        return {"reason": "compiled for its shape as it first runs, which takes memory of its own"}
    if not Path("/proc/self/clear_refs").exists():
        return {"reason": "the peak is read from /proc, which this system does not have"}
    asked = [peer.name, case.group, case.name, case.size, case.dtype, case.layout, case.direction]
    command = [sys.executable, "-m", "fastsr.bench.memory", str(torch.get_num_threads()), *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"reason": (done.stderr.strip().splitlines() or ["failed"])[-1][:160]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_cuda(run: Callable[[], Any]) -> float:
    """Megabytes that a run of something warm takes above what is allocated already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    del result
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _main(threads: str, peer: str, group: str, name: str, size: str, *rest: str) -> None:
    from fastsr.bench.cases import make_case
    from fastsr.bench.registry import load_registry

    torch.set_num_threads(int(threads))
    registry = load_registry()
    small = make_case(registry, group, name, "32x32", *rest)
    print(json.dumps(_measure_here(registry.peers[peer], small, make_case(registry, group, name, size, *rest))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
