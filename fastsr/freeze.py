"""`freeze`: an inference-only copy of a network, with folded and packed weights."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastsr._graphs import GraphedCalls, observes
from fastsr._transforms import is_transformed, transformed
from fastsr.errors import InputError
from fastsr.models.alkdnet import BSRN, ALKDNet
from fastsr.models.base import SuperResolutionNet
from fastsr.patch.parts import PARTS

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))]


class FrozenNet(nn.Module):
    """What `freeze` returns: the copy as `net`, and its attributes (`scale`, `min_size`, ...) as if they were its own.

    It may be called from several threads, copied (`copy.deepcopy`), pickled, compiled, exported and moved by `.to`:
    the packed weights are made anew wherever it comes to. It cannot be trained or loaded into, nor can its parts or
    what it is a part of. Do not write or replace its parameters in another way, as an EMA of it and
    `torch.func.functional_call` do: calls would mix them with the packed ones, without a word but within transforms.
    """

    def __init__(self, net: nn.Module, graphs: GraphedCalls | None = None) -> None:
        super().__init__()
        self.net = net
        self.graphs = graphs
        super().train(False)
        for module in self.modules():
            module.register_load_state_dict_pre_hook(_refuse_state_dict)
            if isinstance(module, SuperResolutionNet):
                module.frozen = True
        _pack(net)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        compiling = torch.compiler.is_compiling()
        if not compiling and transformed() and any(map(is_transformed, self.net.parameters())):
            raise InputError("a frozen network takes no weights from torch.func; call the network it was made from")
        if self.graphs is not None and len(args) + len(kwargs) == 1:
            return self.graphs(*args, **kwargs)
        return self.net(*args, **kwargs)

    def _replicate_for_data_parallel(self) -> nn.Module:
        replica: nn.Module = super()._replicate_for_data_parallel()
        replica.__dict__["graphs"] = None  # they are of this network, not of the replica's on another device
        return replica

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "net":
                raise
            return getattr(self.net, name)

    def train(self, mode: bool = True) -> FrozenNet:
        """Does nothing for `eval()`.

        Raises:
            InputError: `mode` is True.
        """
        if mode:
            raise InputError(
                "a frozen network cannot be trained; train the network it was made from and freeze it again"
            )
        return self

    def requires_grad_(self, requires_grad: bool = True) -> FrozenNet:
        """Does nothing for False.

        Raises:
            InputError: `requires_grad` is True.
        """
        if requires_grad:
            raise InputError("a frozen network has no gradients; train the network it was made from, or call that one")
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenNet:
        if self.graphs is not None:
            self.graphs.clear()
        super()._apply(fn, recurse)
        _pack(self.net)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _pack(self.net)


def _refuse_state_dict(*_: Any) -> None:
    """For every module within, so that a wrapper does not load into them either."""
    raise InputError("a frozen network takes no state dict; load it into a network of its kind and freeze that")


def freeze(
    model: nn.Module, dtype: torch.dtype | None = None, cuda_graph: bool = False, max_graphs: int = 8
) -> FrozenNet:
    """An inference-only copy of `model`, which stays as it is.

    The copy is in evaluation mode and computes what `model` would, to rounding, with less work per call: weights are
    in the order in which the kernels read them, on the CPU those of convolutions and of the ESA, on a GPU those that
    CUDA C++ takes so; and what is linear is folded (ALKDNet's and BSRN's head takes the image once instead of four
    times; on the CPU the blueprint ESA's conv2.pw and conv_f become part of its conv1). Where CUDA C++ runs,
    channels of MLRN and RLFN are padded to multiples of 8 with weights of zero, unless hooks or own modules would see
    it. Training `model` further does not change the copy: freeze it again.

    Where no kernel takes packed weights (Triton, the reference path, gradients of the image) it runs as the network
    itself does.

    Args:
        model: ALKDNet, BSRN, MLRN, RLFN, a network that `fastsr.accelerate` found parts in, or one of these within
            DistributedDataParallel, DataParallel or torch.compile, which are taken off.
        dtype: torch.float32, float16, bfloat16 or float64; by default that of `model`.
        cuda_graph: on a GPU, record the call for every shape, layout and dtype of image once as a CUDA graph and replay
            it from then on; results are the caller's own. Calls with more than the image, and while there are forward
            hooks, global ones or such as the copy has got later, run without graphs. Elsewhere it has no effect.
        max_graphs: graphs kept on a device; the one that was not used for longest goes first. They share the memory of
            their feature maps, so that calls on one device run one after another, whatever their streams.

    Returns:
        A FrozenNet. Parametrizations have become values; forward hooks are the same ones that `model` has, hooks on
        gradients and state dicts are gone.

    Raises:
        InputError: `model` is not a network with fastsr's parts or is frozen already, `dtype` is another one,
            `max_graphs` is not a positive whole number, or `model` has forward hooks, which a graph would not call.
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise InputError(f"freeze: model is {given}; pass a network, an instance of torch.nn.Module")
    if isinstance(model, FrozenNet):
        raise InputError("freeze: model is frozen already; freeze the network it was made from")
    if dtype is not None and dtype not in DTYPES:
        given = dtype if isinstance(dtype, torch.dtype) else repr(dtype)
        raise InputError(f"freeze: dtype is {given}; pass one of {', '.join(map(str, DTYPES))}")
    if not isinstance(max_graphs, int) or isinstance(max_graphs, bool) or max_graphs < 1:
        raise InputError(f"freeze: max_graphs is {max_graphs!r}; pass a whole number from 1 on")
    model = _unwrap(model)
    if not any(isinstance(module, PARTS) for module in model.modules()):
        raise InputError(f"freeze: {type(model).__name__} holds no part of fastsr; call fastsr.accelerate on it first")
    hooks = (h for m in model.modules() for kind in (m._forward_hooks, m._forward_pre_hooks) for h in kind.values())
    if cuda_graph and any(map(observes, hooks)):
        raise InputError(
            "freeze: model has forward hooks, which a CUDA graph would not call; remove them, or freeze without "
            "cuda_graph"
        )
    net = _copy(model).eval()
    for module in net.modules():
        _remove_parametrizations(module)
    net.requires_grad_(False)
    if dtype is not None:
        net.to(dtype)
    if isinstance(net, ALKDNet | BSRN):
        net.fold()
    return FrozenNet(net, GraphedCalls(net, max_graphs) if cuda_graph else None)


def _unwrap(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy, but for hooks: they may hold on to anything, so the copy shares those of its forward pass."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name in _HOOKS:
            hooks = vars(module).get(name)
            if hooks is not None:
                memo[id(hooks)] = OrderedDict(hooks if name.startswith("_forward") else ())
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(f"freeze: {type(model).__name__} cannot be copied by copy.deepcopy: {error}") from error


def _remove_parametrizations(module: nn.Module) -> None:
    """Leave the values of the parameters that have any."""
    if not parametrize.is_parametrized(module):
        return
    shared = type(module)  # with the original, and removing takes the parameters' properties from it
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    for name in list(module.parametrizations):  # type: ignore[arg-type]
        parametrize.remove_parametrizations(module, name)


def _pack(module: nn.Module) -> None:
    """Let every part below `module` that can pack its weights do so; one that can does it for all below it."""
    pack = getattr(module, "pack", None) if isinstance(module, (*PARTS, SuperResolutionNet)) else None
    if pack is not None:
        pack()
        return
    for child in module.children():
        _pack(child)
