"""Walks a network and swaps the parts that fastsr has, largest first."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from fastsr.errors import InputError
from fastsr.patch import verify
from fastsr.patch.parts import PARTS, Mismatch, looks_like, match

ALREADY = "already fastsr's"


@dataclass(frozen=True)
class AccelerateReport:
    """What `accelerate` did to a network; `str()` of it is a readable summary.

    Attributes:
        swapped: path of each swapped part, as in `net.get_submodule(path)` ("" is `net`) -> the fastsr class.
        kept: path of each part that looks like fastsr's and was left as it is -> why.
        network: the class of the network.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    network: str = "network"

    def __str__(self) -> str:
        summary = f"{self.network}: {_count(len(self.swapped))} swapped, {len(self.kept)} kept"
        if "" not in {**self.swapped, **self.kept}:
            summary += "; the network's own forward stays"
        swapped, kept = _paths_by_value(self.swapped), _paths_by_value(self.kept)
        width = max(map(len, swapped), default=0)
        lines = [f"  swapped  {name:<{width}}  {paths}" for name, paths in swapped.items()]
        lines += [f"  kept     {paths}: {reason}" for reason, paths in kept.items()]
        return "\n".join([summary, *lines])


def accelerate(net: nn.Module) -> AccelerateReport:
    """Swap the parts of `net` that fastsr has kernels for, in place, and report what was swapped.

    Works on ALKDNet, BSRN, RLFN, MLRN-like and mixed networks from any code base, before or after wrapping in
    DistributedDataParallel, DataParallel or torch.compile, and before or after an optimiser or an EMA copy is
    made. A part is found by its children and their shapes, never by its class name: whole blocks first (ALKDB,
    ESDB, RLFB, and MLRB under any children's names), then ALKConv, BSConvU, both forms of ESA, the 3x3 +
    PixelShuffle tail and norms over the channels of [N, C, H, W].

    A swap changes the class of the module object and nothing else, but for a forward pre-hook where its forward had
    another name than x for the map, which may so still be passed by that name. Modules, parameters, their names and
    order in the state dict, device, dtype, `requires_grad`, training mode and memory format all stay, so optimisers,
    hooks on parameters and checkpoints keep working. Parts without kernels, and the network's own forward, are not
    touched.

    Every swap is verified first: in float64, with random parameters, output and all gradients of the part before and
    after must agree to 1e-9, in training mode, too. What does not agree, cannot be run on one [N, C, H, W], changes
    that in place, lives on the meta device, or carries hooks, parametrizations, or a class that redefines more than
    `forward`, is kept with the reason. Random states and the parameters' values are left alone.

    Several threads may call this at once, each for a network of its own, while others run networks; what these draw
    from PyTorch's random numbers in the meantime repeats.

    Inside a swapped part only the part's own forward runs: hooks that are added to its convolutions afterwards do not
    fire, and methods of its former class other than `forward` are gone.

    Args:
        net: any module; fastsr's own parts are reported as such and left alone, so that a second call changes nothing.

    Returns:
        An AccelerateReport with the swapped parts, and the kept ones with reasons.

    Raises:
        InputError: `net` is not a module.
    """
    if not isinstance(net, nn.Module):
        given = f"the class {net.__name__}" if isinstance(net, type) else f"a {type(net).__name__}"
        raise InputError(f"accelerate: net is {given}; pass a network, an instance of torch.nn.Module")
    report = AccelerateReport(network=type(net).__name__)
    _visit(net, "", report, _users(net), set())
    return report


def _users(net: nn.Module) -> dict[int, set[int]]:
    """By the id of each module, the ids of the modules it is a child of."""
    users: dict[int, set[int]] = {id(module): set() for module in net.modules()}
    for module in net.modules():
        for child in module.children():
            users[id(child)].add(id(module))
    return users


def _visit(module: nn.Module, path: str, report: AccelerateReport, users: dict[int, set[int]], seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    if isinstance(module, PARTS):
        part = next(cls.__name__ for cls in type(module).__mro__ if cls in PARTS)
        report.kept[path] = f"{ALREADY} {part}"
        return
    if isinstance(module, torch.jit.ScriptModule):
        report.kept[path] = "compiled by torch.jit; accelerate the network before that"
        return
    part_name = looks_like(module)
    if part_name is not None:
        reason = _swap(module, part_name, users)
        if reason is None:
            report.swapped[path] = part_name
            return
        report.kept[path] = f"looks like {part_name}, but {reason}"
    for name, child in module.named_children():
        _visit(child, f"{path}.{name}" if path else name, report, users, seen)


def _swap(module: nn.Module, part: str, users: dict[int, set[int]]) -> str | None:
    """Swap `module` for fastsr's `part` if that is safe; the reason if it is not."""
    try:
        verify.check_state(module)
        found = match(module, part)
        verify.check_classes(module, found.plans[0], users)
        verify.apply(module, verify.choose(module, found))
    except Mismatch as why:
        return str(why)
    return None


def _count(parts: int) -> str:
    return "1 part" if parts == 1 else f"{parts} parts"


def _paths_by_value(paths: dict[str, str]) -> dict[str, str]:
    grouped: dict[str, list[str]] = {}
    for path, value in paths.items():
        grouped.setdefault(value, []).append(path or "the network itself")
    return {value: _few(names) for value, names in grouped.items()}


def _few(names: list[str], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
