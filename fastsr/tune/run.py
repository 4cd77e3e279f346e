"""Tunes on the GPU that is there."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastsr import _triton
from fastsr._dispatch import OPERATORS
from fastsr.errors import BackendError, InputError
from fastsr.tune.search import Tile, Timer, Use, search
from fastsr.tune.table import merged, text

logger = logging.getLogger("fastsr")


def _milliseconds(call: Callable[[], Any]) -> float:
    import triton.testing

    return float(triton.testing.do_bench(call, return_mode="median"))


def run_tune(
    operators: Sequence[str] = OPERATORS,
    dtype: torch.dtype = torch.float16,
    output: Path | None = None,
    timer: Timer = _milliseconds,
) -> Path:
    """Measure tiles of the operators' kernels and write them into the table of this GPU's architecture.

    Args:
        operators: names; all by default.
        dtype: of maps and weights; kernels with matrix products have tiles of their own for float32.
        output: the file; by default the installed table, configs/<architecture>.json beside the kernels. What the
            tables say of other kernels and shapes stays.
        timer: milliseconds of a call.

    Returns:
        The file that was written.

    Raises:
        InputError: an unknown operator, or a file that cannot be written.
        BackendError: there is no GPU, or the Triton kernels cannot run on it.
    """
    unknown = [name for name in operators if name not in OPERATORS]
    if unknown:
        raise InputError(f"no operator is called {unknown[0]!r}; there are {', '.join(OPERATORS)}")
    if not torch.cuda.is_available():
        raise BackendError("tuning measures on a GPU, and PyTorch finds none here; run it on the machine to tune for")
    device = torch.device("cuda", torch.cuda.current_device())
    probe = torch.empty(1, 1, 1, 1, dtype=dtype, device=device)
    reason = _triton.reason_against(probe, (torch.float32, torch.float16, torch.bfloat16))
    if reason is not None:
        raise BackendError(f"the triton kernels cannot run here: {reason}")
    from fastsr.tune.workloads import workloads

    found: dict[Use, Tile] = {}
    for operator in operators:
        for name, call in workloads(operator, dtype, device):
            logger.info("%s", name)
            found.update(search(call, timer, logger.info))
    architecture = importlib.import_module("fastsr.kernels.launch").architecture(probe)
    output = (
        importlib.import_module("fastsr.kernels.config").FOLDER / f"{architecture}.json" if output is None else output
    )
    write(output, architecture, torch.cuda.get_device_name(device), found)
    return output


def write(output: Path, architecture: str, device: str, found: dict[Use, Tile]) -> None:
    """Write the table of `architecture` with what was found on `device`, without what the default table has as well."""
    import triton

    from fastsr._files import atomic_write

    config: Any = importlib.import_module("fastsr.kernels.config")
    config.table.cache_clear()
    default, own = config.table(config.DEFAULT)["kernels"], config.table(architecture)["kernels"]
    kernels = {k: v for k, v in merged(own, found).items() if v != default.get(k)}
    versions = f"Triton {triton.__version__} and PyTorch {torch.__version__}"
    origin = f"fastsr tune on {device} with {versions}; what it did not measure is as it was before"
    try:
        atomic_write(output, text(origin, kernels).encode())
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from error
    config.table.cache_clear()
    config.nearest.cache_clear()
