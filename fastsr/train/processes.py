"""One process or several: what torchrun or another launcher set up, and what the processes tell each other."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastsr import _env
from fastsr._device import find_device
from fastsr.errors import InputError

__all__ = ["Processes"]

_TIMEOUT = timedelta(minutes=30)  # the first process may be making LR images while the others wait


class Processes:
    """The process group of a run; a context that leaves it. Without torchrun, or a launcher that sets the same
    variables, there is one process and no group.

    Attributes:
        rank, world: the number of this process and of all.
        first: whether this process writes files.
        device: where this process computes.
    """

    def __init__(self, device: str) -> None:
        launched = dist.is_torchelastic_launched() or _env.launched()
        cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
        self.rank, self.world = 0, 1
        if launched:
            local = dist.get_node_local_rank()
            if cuda:
                _check_gpu(local)
                torch.cuda.set_device(local)
                device = f"cuda:{local}"
            try:
                dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT)
            except (dist.DistError, RuntimeError, ValueError) as error:
                raise InputError(_in_words(error)) from error
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if device == "auto":
            device = "cuda" if cuda else "cpu"
        self.device = find_device(device, f"compute.device={device!r}")
        self.first = self.rank == 0
        self._group = launched

    def mean(self, values: list[float]) -> list[float]:
        """The mean of each value over the processes, the same in all of them."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return [float(value) for value in shared / self.world]

    def from_first(self, value: float) -> float:
        """The value of the first process."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def share(self, value: Any) -> Any:
        """What the first process has, in all of them: plain data and tensors."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def gather(self, value: Tensor) -> list[Tensor]:
        """A tensor of the same shape from every process."""
        if self.world == 1:
            return [value]
        value = value.to(self.device)
        parts = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(parts, value)
        return [part.cpu() for part in parts]

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            dist.barrier()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._group and dist.is_initialized():
            dist.destroy_process_group()


def _in_words(error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    if "EADDRINUSE" in reason:
        return (
            f"the port {_env.master_port()}, where the processes should meet, is in use; pass another MASTER_PORT, or "
            "start them with torchrun --standalone, which takes a free one"
        )
    return f"the processes cannot be connected ({reason}); see torchrun's --rdzv-endpoint"


def _check_gpu(local: int) -> None:
    count = torch.cuda.device_count()
    if local >= count:
        raise InputError(
            f"torchrun started more processes than this machine has GPUs ({count}); lower --nproc-per-node"
        )
