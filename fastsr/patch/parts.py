"""Recognises, by children and shapes, the modules that fastsr has a part for.

A plan says which class each module of a part gets and which attributes that class reads beside the children. It is
a proposal: structure cannot tell what a `forward` computes, so `verify` decides, and also between several plans.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import chain, permutations, product
from typing import Any, NamedTuple

import torch
from torch import nn

from fastsr.nn import (
    ALKDB,
    CCA,
    ESDB,
    MLRB,
    RLFB,
    ALKConv,
    BlueprintESA,
    BSConvU,
    PixelNorm,
    PixelShuffleUp,
    PlainESA,
)

STAGES = ("c1_r", "c2_r", "c3_r", "c4")
DISTILLERS = ("c1_d", "c2_d", "c3_d")
UNKNOWN_EPS = (1e-6, 1e-5)  # the convolutions' and the blocks' in ALKDNet, for norms that do not tell


class Mismatch(Exception):
    """Why a module cannot be swapped for the part it looks like."""


class RenamedMLRB(MLRB):
    """An MLRB whose children keep the names, and so the state-dict keys, that the network's author gave them."""

    roles: dict[str, str]  # MLRB's name of a child -> its registered name, where they differ

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(self.__dict__.get("roles", {}).get(name, name))


@dataclass(frozen=True)
class Swap:
    """The class that a module gets, and the attributes to set."""

    cls: type[nn.Module]
    attributes: dict[str, Any] = field(default_factory=dict)


Plan = dict[str, Swap]  # by the module's path below the part, "" for the part itself


class Match(NamedTuple):
    """The plans of which one may hold for a module, most likely first."""

    part: str
    in_channels: int
    plans: list[Plan]


# ---- what the children must be


def _children(module: nn.Module | None) -> dict[str, nn.Module]:
    """All that are set, under every name; `named_children` leaves repeated ones out."""
    if module is None or isinstance(module, torch.jit.ScriptModule):
        return {}
    return {name: child for name, child in module._modules.items() if child is not None}


def _child(parent: nn.Module, name: str) -> nn.Module:
    child = _children(parent).get(name)
    if child is None:
        raise Mismatch(f"it has no child {name}")
    return child


def _only(parent: nn.Module, *names: str) -> None:
    """Whatever else `parent` holds (activations, pooling) must have neither parameters nor buffers."""
    own = chain(parent._parameters.items(), parent._buffers.items())
    extra = next((name for name, value in own if value is not None), None)
    if extra is not None:
        raise Mismatch(f"it has a parameter or buffer of its own, {extra}")
    for name, child in _children(parent).items():
        if name not in names and _holds_state(child):
            raise Mismatch(f"its extra child {name} has parameters or buffers")


def _holds_state(module: nn.Module) -> bool:
    return next(chain(module.parameters(), module.buffers()), None) is not None


def _conv(
    parent: nn.Module,
    name: str,
    kernel: tuple[int, int],
    *,
    bias: bool = True,
    depthwise: bool = False,
    stride: int | None = 1,
    paddings: Collection[int] | None = None,
) -> nn.Conv2d:
    """The named child, a convolution of this kind: any stride if None, by default the padding that keeps the size."""
    conv = _child(parent, name)
    if not isinstance(conv, nn.Conv2d) or type(conv).forward is not nn.Conv2d.forward:
        raise Mismatch(f"its child {name} is a {type(conv).__name__}, not a plain Conv2d")
    wanted: dict[str, Any] = {
        "kernel_size": kernel,
        "stride": (conv.stride[0] if stride is None else stride,) * 2,
        "dilation": (1, 1),
        "groups": conv.out_channels if depthwise else 1,
        "padding_mode": "zeros",
        "in_channels": conv.out_channels if depthwise else conv.in_channels,
    }
    for setting, value in wanted.items():
        if getattr(conv, setting) != value:
            raise Mismatch(f"its child {name} has {setting} {getattr(conv, setting)}, not {value}")
    same_size: tuple[Any, ...] = ((kernel[0] // 2, kernel[1] // 2), "valid" if kernel == (1, 1) else "same")
    accepted = same_size if paddings is None else tuple((p, p) for p in paddings)
    if conv.padding not in accepted:
        raise Mismatch(f"its child {name} has padding {conv.padding}, not {' or '.join(map(str, accepted))}")
    if (conv.bias is not None) != bias:
        raise Mismatch(f"its child {name} has {'no' if bias else 'a'} bias")
    return conv


def _below(parent: nn.Module, name: str, plans_of: Callable[[nn.Module], list[Plan]]) -> list[Plan]:
    """The plans of a child, with paths from its parent."""
    child = _child(parent, name)
    try:
        plans = plans_of(child)
    except Mismatch as why:
        raise Mismatch(f"its child {name} does not fit: {why}") from None
    return [{f"{name}.{path}" if path else name: swap for path, swap in plan.items()} for plan in plans]


def _together(*choices: list[Plan]) -> list[Plan]:
    """Every way to take one plan from each list."""
    return [{path: swap for plan in taken for path, swap in plan.items()} for taken in product(*choices)]


def _alike(*choices: list[Plan]) -> list[Plan]:
    """The ways to take one plan from each list when siblings answer an open question alike."""
    most = max(map(len, choices))
    return [_together(*([plans[min(i, len(plans) - 1)]] for plans in choices))[0] for i in range(most)]


# ---- parts, each as a function from a module to its possible plans


def _pixel_norm(module: nn.Module) -> list[Plan]:
    held = {name: value for name, value in module._parameters.items() if value is not None}
    shapes = [value.shape for value in held.values()]
    if set(held) != {"weight", "bias"} or len(shapes[0]) != 1 or shapes[0] != shapes[1]:
        raise Mismatch("it does not hold exactly a weight [C] and a bias [C]")
    if _children(module) or next(module.buffers(), None) is not None:
        raise Mismatch("it has children or buffers")
    eps = getattr(module, "eps", None)
    known = [float(eps)] if isinstance(eps, float | int) else UNKNOWN_EPS
    return [{"": Swap(PixelNorm, {"eps": value})} for value in known]


def _bs_conv(module: nn.Module, stride: int | None = None, paddings: Collection[int] = range(4)) -> list[Plan]:
    _only(module, "pw", "dw")
    _conv(module, "pw", (1, 1), bias=False)
    _conv(module, "dw", (3, 3), depthwise=True, stride=stride, paddings=paddings)
    return [{"": Swap(BSConvU)}]


def _bs_conv_same(module: nn.Module) -> list[Plan]:
    return _bs_conv(module, 1, (1,))


def _bs_conv_strided(module: nn.Module) -> list[Plan]:
    return _bs_conv(module, 2, (0, 1))


def _alk_conv(module: nn.Module) -> list[Plan]:
    _only(module, "pw", "LoRA1", "LoRA2", "small_conv", "norm")
    _conv(module, "pw", (1, 1), bias=False)
    vertical = _child(module, "LoRA1")
    k = vertical.kernel_size[0] | 1 if isinstance(vertical, nn.Conv2d) else 3  # odd, so an even kernel is refused
    _conv(module, "LoRA1", (k, 1), depthwise=True)
    _conv(module, "LoRA2", (1, k), depthwise=True)
    _conv(module, "small_conv", (3, 3), depthwise=True)
    return _together([{"": Swap(ALKConv)}], _below(module, "norm", _pixel_norm))


def _plain_esa(module: nn.Module) -> list[Plan]:
    _only(module, "conv1", "conv_f", "conv2", "conv3", "conv4")
    for name in ("conv1", "conv_f", "conv4"):
        _conv(module, name, (1, 1))
    _conv(module, "conv2", (3, 3), stride=2, paddings=(0, 1))
    _conv(module, "conv3", (3, 3))
    return [{"": Swap(PlainESA)}]


def _blueprint_esa(module: nn.Module) -> list[Plan]:
    separable = ("conv_max", "conv3", "conv3_")
    _only(module, "conv1", "conv_f", "conv2", "conv4", *separable)
    for name in ("conv1", "conv_f", "conv4"):
        _conv(module, name, (1, 1))
    inner = [_below(module, name, _bs_conv_same) for name in separable]
    return _together([{"": Swap(BlueprintESA)}], _below(module, "conv2", _bs_conv_strided), *inner)


def _cca(module: nn.Module) -> list[Plan]:
    _only(module, "conv_du")
    layers = _child(module, "conv_du")
    if not isinstance(layers, nn.Sequential) or len(layers) < 3:
        raise Mismatch("its child conv_du is not a Sequential of convolution, ReLU, convolution, sigmoid")
    down, up = list(_children(layers))[0:3:2]
    _only(layers, down, up)
    _conv(layers, down, (1, 1))
    _conv(layers, up, (1, 1))
    return [{"": Swap(CCA)}]


def _distillation_block(module: nn.Module) -> list[Plan]:
    _only(module, *DISTILLERS, *STAGES, "c5", "esa", "cca", "pixel_norm")
    for name in (*DISTILLERS, "c5"):
        _conv(module, name, (1, 1))
    cls, stage = (ALKDB, _alk_conv) if _is_alk_block(module) else (ESDB, _bs_conv_same)
    stages = _alike(*(_below(module, name, stage) for name in STAGES))
    tail = _together(_below(module, "esa", _blueprint_esa), _below(module, "cca", _cca))
    norm = _children(module).get("pixel_norm")
    if norm is None or not _holds_state(norm):
        return _together([{"": Swap(cls, {"pixel_norm": None})}], stages, tail)
    return _together([{"": Swap(cls)}], stages, tail, _below(module, "pixel_norm", _pixel_norm))


def _is_alk_block(module: nn.Module) -> bool:
    return "LoRA1" in _children(_children(module).get("c1_r"))


def _residual_block(module: nn.Module) -> list[Plan]:
    _only(module, "c1_r", "c2_r", "c3_r", "c5", "esa")
    for name in ("c1_r", "c2_r", "c3_r"):
        _conv(module, name, (3, 3))
    _conv(module, "c5", (1, 1))
    return _together([{"": Swap(RLFB)}], _below(module, "esa", _plain_esa))


def _mixer_block(module: nn.Module) -> list[Plan]:
    """An MLRB under any children's names: definition order proposes the roles, verification disposes."""
    dense, depthwise, pointwise, others = _conv_names(module)
    esa = next(name for name, child in _children(module).items() if _is_plain_esa(child))
    _only(module, *dense, *depthwise, *pointwise, *others, esa)
    counts = (len(dense), len(depthwise), len(pointwise), len(others))
    if counts not in ((2, 1, 2, 0), (2, 0, 2, 0), (2, 0, 1, 0)):
        raise Mismatch("it has {} 3x3, {} depthwise 3x3, {} 1x1 and {} other convolutions".format(*counts))
    for name in (*dense, *depthwise):
        _conv(module, name, (3, 3), depthwise=name in depthwise)
    for name in pointwise:
        _conv(module, name, (1, 1))
    blocks: list[Plan] = []
    taken: set[str] = set()
    for (c1, c2), (*pwc, c5) in product(permutations(dense), permutations(pointwise)):
        roles = {"c1_r": c1, "c2_r": c2, "dwc": _first(depthwise), "pwc": _first(pwc), "c5": c5, "esa": esa}
        renamed = {role: name for role, name in roles.items() if name not in (role, None)}
        absent = {role: None for role, name in roles.items() if name is None}
        clashes = {role for role in renamed if role in _children(module)}
        taken = taken or clashes
        for activation in () if clashes else ("gelu", "leaky_relu"):
            attributes = {"activation": activation, **absent}
            named = Swap(RenamedMLRB, {**attributes, "roles": renamed}) if renamed else Swap(MLRB, attributes)
            blocks.append({"": named})
    if not blocks:
        raise Mismatch(f"its child {min(taken)} has the name of another child of fastsr's MLRB")
    return _together(blocks, _below(module, esa, _plain_esa))


def _conv_names(module: nn.Module) -> tuple[list[str], list[str], list[str], list[str]]:
    """Names of the children that are 3x3, depthwise 3x3, 1x1 and other convolutions."""
    found: tuple[list[str], list[str], list[str], list[str]] = ([], [], [], [])
    for name, child in _children(module).items():
        if isinstance(child, nn.Conv2d):
            kind = {(3, 3): int(child.groups > 1), (1, 1): 2}
            found[kind.get((child.kernel_size[0], child.kernel_size[1]), 3)].append(name)
    return found


def _first(names: list[str]) -> str | None:
    return names[0] if names else None


def _pixel_shuffle_up(module: nn.Module) -> list[Plan]:
    name, shuffle = _children(module)
    _only(module, name)
    _conv(module, name, (3, 3))
    return [{"": Swap(PixelShuffleUp, {"scale": getattr(_child(module, shuffle), "upscale_factor", 0)})}]


def _lone_cca(module: nn.Module) -> list[Plan]:
    raise Mismatch("fastsr has it only as the end of a whole block")


# ---- recognition


def _has(*names: str) -> Callable[[nn.Module], bool]:
    return lambda module: _children(module).keys() >= set(names)


_has_plain_esa_names = _has("conv1", "conv_f", "conv2", "conv3", "conv4")
_has_residual_names = _has("c1_r", "c2_r", "c3_r", "c5", "esa")
_has_distillation_names = _has(*DISTILLERS, *STAGES, "c5", "esa", "cca")


def _is_plain_esa(module: nn.Module) -> bool:
    return _has_plain_esa_names(module) and "conv_max" not in _children(module)


def _is_residual_block(module: nn.Module) -> bool:
    if not _has_residual_names(module) or "c1_d" in _children(module):
        return False
    return getattr(_child(module, "c3_r"), "groups", 1) == 1


def _is_mixer_block(module: nn.Module) -> bool:
    return sum(map(_is_plain_esa, _children(module).values())) == 1 and len(_conv_names(module)[0]) >= 2


def _is_pixel_norm(module: nn.Module) -> bool:
    """A class of the author's own: PyTorch's norms do not normalise the channels of [N, C, H, W] alone."""
    own_forward = not str(getattr(type(module).forward, "__module__", "")).startswith("torch.")
    held = dict(module.named_parameters())
    return own_forward and set(held) == {"weight", "bias"} and all(value.ndim == 1 for value in held.values())


def _is_pixel_shuffle_up(module: nn.Module) -> bool:
    kinds = [type(child) for child in _children(module).values()]
    return isinstance(module, nn.Sequential) and kinds == [nn.Conv2d, nn.PixelShuffle]


class _Kind(NamedTuple):
    part: str
    looks_like: Callable[[nn.Module], bool]
    plans: Callable[[nn.Module], list[Plan]]


_KINDS = (  # largest first
    _Kind("ALKDB", lambda m: _has_distillation_names(m) and _is_alk_block(m), _distillation_block),
    _Kind("ESDB", _has_distillation_names, _distillation_block),
    _Kind("RLFB", _is_residual_block, _residual_block),
    _Kind("MLRB", _is_mixer_block, _mixer_block),
    _Kind("ALKConv", _has("pw", "LoRA1", "LoRA2", "small_conv", "norm"), _alk_conv),
    _Kind("BSConvU", _has("pw", "dw"), _bs_conv),
    _Kind("BlueprintESA", lambda m: _has_plain_esa_names(m) and not _is_plain_esa(m), _blueprint_esa),
    _Kind("PlainESA", _is_plain_esa, _plain_esa),
    _Kind("PixelShuffleUp", _is_pixel_shuffle_up, _pixel_shuffle_up),
    _Kind("PixelNorm", _is_pixel_norm, _pixel_norm),
    _Kind("CCA", _has("conv_du"), _lone_cca),
)
PARTS = (ALKDB, ESDB, RLFB, MLRB, ALKConv, BSConvU, BlueprintESA, PlainESA, PixelShuffleUp, PixelNorm, CCA)


def looks_like(module: nn.Module) -> str | None:
    """The fastsr part that `module` looks like at first sight, or None."""
    return next((kind.part for kind in _KINDS if kind.looks_like(module)), None)


def match(module: nn.Module, part: str) -> Match:
    """The plans by which `module` may become `part`, which it looks like.

    Raises:
        Mismatch: its children, parameters or shapes are not that part's.
    """
    plans = next(kind.plans for kind in _KINDS if kind.part == part)(module)
    return Match(part, _in_channels(module), plans)


def _in_channels(module: nn.Module) -> int:
    children = _children(module)
    named = (children.get(name) for name in ("c1_d", "c1_r", "pw", "conv1"))
    convs = (child for child in chain(named, children.values()) if isinstance(child, nn.Conv2d))
    first = next(convs, None)
    return next(module.parameters()).shape[0] if first is None else first.in_channels
