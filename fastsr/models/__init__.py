"""The networks, their registry and their checkpoints."""

from fastsr.models.alkdnet import BSRN, ALKDNet
from fastsr.models.base import SuperResolutionNet
from fastsr.models.checkpoint import load, save
from fastsr.models.complexity import Complexity, complexity
from fastsr.models.mlrn import MLRN, RLFN
from fastsr.models.registry import create_model, list_models, model_entry

__all__ = [
    "BSRN",
    "MLRN",
    "RLFN",
    "ALKDNet",
    "Complexity",
    "SuperResolutionNet",
    "complexity",
    "create_model",
    "list_models",
    "load",
    "model_entry",
    "save",
]
