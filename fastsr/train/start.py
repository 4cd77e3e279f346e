"""What a run starts from: the network of a recipe, perhaps with weights from elsewhere, and its optimizer."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from fastsr.errors import FastsrError, InputError
from fastsr.models import SuperResolutionNet, create_model
from fastsr.models.checkpoint import StateDict, read_state_dict
from fastsr.train.checkpoint import read_state
from fastsr.train.recipe import Model, Recipe

__all__ = ["make_network", "make_optimizer"]

log = logging.getLogger(__name__)


def make_network(model: Model) -> SuperResolutionNet:
    """The network in training mode.

    Raises:
        InputError: there is no such network, or nothing in the warm start fits it.
        CheckpointError: the warm start cannot be read.
    """
    try:
        net = create_model(model.name, scale=model.scale, **model.settings)
    except FastsrError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # PyTorch's, of a setting that is no number or too small
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model.settings {model.settings} do not fit {model.name} ({reason})") from error
    channels = net.config.get("num_in_ch"), net.config.get("num_out_ch")
    if channels != (3, 3):
        raise InputError(f"model.settings give {channels[0]} channels in and {channels[1]} out; images are RGB, so 3")
    if model.zero_tail:
        tail = [module for module in net.modules() if isinstance(module, nn.Conv2d)][-1]
        nn.init.zeros_(tail.weight)
        if tail.bias is not None:
            nn.init.zeros_(tail.bias)
    if model.warm_start is not None:
        _take(net, model.warm_start, f"{model.name} x{model.scale}")
    return net.train()


def make_optimizer(recipe: Recipe, net: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW, by the recipe."""
    settings = recipe.optimizer
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return kind(net.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


def _take(net: SuperResolutionNet, place: str, name: str) -> None:
    """Takes the tensors whose names and shapes agree."""
    given, own = _weights(place), net.state_dict()
    fitting = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise InputError(f"model.warm_start {place} has no tensor that fits {name}")
    net.load_state_dict(fitting, strict=False)
    left = [key for key in own if key not in fitting]
    if left:
        log.warning(
            "warm start: %d of the %d tensors of %s are not in %s or have another shape there and start anew (%s)",
            *(len(left), len(own), name, place, ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")),
        )
    else:
        log.info("warm start: all %d tensors are from %s", len(own), place)


def _weights(place: str) -> StateDict:
    """The tensors of a checkpoint; of a run's own state, the averaged ones if it has any."""
    if Path(place).suffix != ".state":
        return read_state_dict(place)[0]
    state = read_state(Path(place))
    weights: StateDict = state["ema"] or state["net"]
    return {key.removeprefix("module."): value for key, value in weights.items()}
