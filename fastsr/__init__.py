"""fastsr: fused kernels for ALKDNet and MLRN super-resolution behind ordinary PyTorch modules.

Importing fastsr touches no device, compiles nothing and needs neither a compiler nor Triton.
"""

from fastsr import nn, ops
from fastsr._dispatch import BACKENDS, backend, can_run, current_backend
from fastsr._gelu import current_gelu, set_gelu
from fastsr._info import __version__, info
from fastsr._native import empty_cache
from fastsr.errors import (
    BackendError,
    CheckpointError,
    FastsrError,
    ImageError,
    InputError,
    UnknownModelError,
)
from fastsr.freeze import FrozenNet, freeze
from fastsr.models import (
    BSRN,
    MLRN,
    RLFN,
    ALKDNet,
    Complexity,
    complexity,
    create_model,
    list_models,
    load,
    save,
)
from fastsr.patch import AccelerateReport, accelerate

ALKDN = ALKDNet

__all__ = [
    "ALKDN",
    "BACKENDS",
    "BSRN",
    "MLRN",
    "RLFN",
    "ALKDNet",
    "AccelerateReport",
    "BackendError",
    "CheckpointError",
    "Complexity",
    "FastsrError",
    "FrozenNet",
    "ImageError",
    "InputError",
    "UnknownModelError",
    "__version__",
    "accelerate",
    "backend",
    "can_run",
    "complexity",
    "create_model",
    "current_backend",
    "current_gelu",
    "empty_cache",
    "freeze",
    "info",
    "list_models",
    "load",
    "nn",
    "ops",
    "save",
    "set_gelu",
]
