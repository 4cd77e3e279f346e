"""Decides by computing whether a module may become the fastsr part that it looks like.

A copy of the module, in float64 on the CPU and with random parameters (zero or one, the usual initial values of
norms and last layers, would hide differences), is run in both modes before and after its classes are exchanged.
Outputs and all gradients must agree to rounding; anything else, an exception included, is a reason to keep it.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from fastsr._dispatch import on_reference
from fastsr.nn.layers import Packing
from fastsr.patch.parts import Match, Mismatch, Plan

TOLERANCE = 1e-9  # of the largest value or 1: float64 rounding is near 1e-14, a wrong eps shows at 1e-6
PROBE, TRAINING_PROBE = (2, 23, 29), (1, 16, 26)  # [N, H, W]: odd and even extents that the ESA can pool

_turn = threading.RLock()  # threads verify one after the other: PyTorch's random state is the process's

_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}
# What a module's class may not define differently from nn.Module, because exchanging the class would lose it.
_MODULE_METHODS = [
    name
    for name, value in vars(nn.Module).items()
    if callable(value)
    and (not name.startswith("__") or name in ("__call__", "__getattr__", "__setattr__", "__setstate__"))
    and name not in ("forward", "extra_repr", "_get_name")
]


class _Renames:
    """A forward pre-hook of a part: its map may be passed by the name that its former forward had for it."""

    observes = False  # `fastsr.freeze`: a CUDA graph may leave it out

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.name not in kwargs:
            return None
        return args, {"x" if name == self.name else name: value for name, value in kwargs.items()}


def apply(part: nn.Module, plan: Plan) -> None:
    """Exchange the classes of `part` and its descendants; modules, parameters, hooks and names stay."""
    name = next(iter(inspect.signature(part.forward).parameters))
    for module, swap in [(part.get_submodule(path), swap) for path, swap in plan.items()]:
        for key in [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, _Renames)]:
            # It was a part by itself before, and hooks keep the whole from fusing it.
            del module._forward_pre_hooks[key], module._forward_pre_hooks_with_kwargs[key]
        module.__class__ = swap.cls
        module.__dict__.update(swap.attributes)
    if name != "x":
        part.register_forward_pre_hook(_Renames(name), with_kwargs=True)


def check_state(part: nn.Module) -> None:
    """Refuse what makes a part more than its children and shapes: hooks, parametrizations, unusual parameters."""
    _check_parameters(part)
    for path, module in part.named_modules():
        who = f"its child {path}" if path else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise Mismatch(f"{who} is compiled by torch.jit")
        for attribute, hook in _HOOKS.items():
            if not all(isinstance(known, _Renames) for known in getattr(module, attribute).values()):
                raise Mismatch(f"{who} has a {hook}, which might not run any more; remove it, accelerate, add it again")
        if parametrize.is_parametrized(module):
            raise Mismatch(f"{who} is parametrized")
        if "forward" in vars(module):
            raise Mismatch(f"{who} has a forward set on the instance")


def _check_parameters(part: nn.Module) -> None:
    kinds = set()
    for name, value in part.named_parameters():
        if torch.nn.parameter.is_lazy(value):
            raise Mismatch(f"its parameter {name} is not initialised yet")
        if value.is_meta:
            raise Mismatch(f"its parameter {name} is on the meta device, so that nothing can be verified")
        if type(value) is not nn.Parameter or not value.is_floating_point():
            raise Mismatch(f"its parameter {name} is a {type(value).__name__} of {value.dtype}")
        kinds.add(f"{str(value.dtype).removeprefix('torch.')} on {value.device}")
    if len(kinds) > 1:
        raise Mismatch(f"its parameters are {' and '.join(sorted(kinds))}")


def check_classes(part: nn.Module, plan: Plan, users: dict[int, set[int]]) -> None:
    """Refuse modules whose class does more than a forward of one tensor, and children that others use, too.

    `users` holds, by the id of a module, the ids of the modules it is a child of.
    """
    arguments = inspect.signature(part.forward).parameters
    if len(arguments) != 1:
        raise Mismatch(f"its forward takes ({', '.join(arguments)}), not one tensor")
    inside = {id(module) for module in part.modules()}
    for path in plan:
        module = part.get_submodule(path)
        who = f"its child {path}" if path else "it"
        own = next((name for name in _MODULE_METHODS if _overrides(module, name)), None)
        if own is not None:
            raise Mismatch(f"{who} is a {type(module).__name__} that defines {own} itself")
        if path and users[id(module)] - inside:
            raise Mismatch(f"{who} is also a child of a module outside")


def _overrides(module: nn.Module, name: str) -> bool:
    """Whether its class defines this differently from nn.Module, and from fastsr's own parts."""
    return getattr(type(module), name, None) not in (getattr(nn.Module, name), getattr(Packing, name))


class _FastDepthwise(TorchFunctionMode):
    """Computes depthwise convolutions as one product: PyTorch's float64 kernel on the CPU goes channel by channel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_conv2d if func is F.conv2d else func)(*args, **(kwargs or {}))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    kernel = tuple(weight.shape[2:])
    if not groups == x.shape[1] == weight.shape[0] > 1 or isinstance(padding, str) or x.dim() != 4:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    size = F.conv2d(x[:1, :1].to("meta"), weight[:1].to("meta"), None, stride, padding, dilation).shape[2:]
    columns = F.unfold(x, kernel, dilation, padding, stride).unflatten(1, (groups, -1))  # [N, C, KH * KW, L]
    y = torch.einsum("nckl,ck->ncl", columns, weight.flatten(1)).unflatten(2, size)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


@contextmanager
def _alone() -> Iterator[None]:
    """Let PyTorch use no other thread here: thousands of tiny operators would wait for them, on a busy machine seconds.

    torch.set_num_threads is about the calling thread and all that start later; for these another thread sets the number
    again at once.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    others = threading.Thread(target=torch.set_num_threads, args=(count,))
    others.start()
    others.join()
    try:
        yield
    finally:
        torch.set_num_threads(count)


def choose(part: nn.Module, match: Match) -> Plan:
    """The plan of `match` under which `part` computes what it did.

    Raises:
        Mismatch: none does, or the part cannot be copied or run.
    """
    with _turn, ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(on_reference())
        stack.enter_context(_FastDepthwise())
        stack.enter_context(_alone())
        original = _random_copy(part)
        try:
            wanted = _respond(original, match.in_channels)
        except Mismatch:
            raise
        except Exception as error:
            raise Mismatch(f"its forward fails on [N, {match.in_channels}, H, W]: {_one_line(error)}") from None
        return _first_equal(original, match, wanted)


def _first_equal(original: nn.Module, match: Match, wanted: dict[str, Tensor | None]) -> Plan:
    failures = []
    for plan in match.plans:
        candidate = copy.deepcopy(original)
        try:
            apply(candidate, plan)
            got = _respond(candidate, match.in_channels)
        except Exception as error:
            raise Mismatch(f"fastsr's {match.part} does not take it: {_one_line(error)}") from None
        failure = _first_difference(wanted, got)
        if failure is None:
            return plan
        failures.append(failure)
    size, what = min(failures)
    by = f"by {size:.1e} of the largest value" if size < float("inf") else "in shape or existence"
    raise Mismatch(f"its {what} differs from fastsr's {match.part} {by}")


def _random_copy(part: nn.Module) -> nn.Module:
    try:
        double = copy.deepcopy(part).to("cpu", torch.float64).requires_grad_(True)
    except Exception as error:
        raise Mismatch(f"it cannot be copied to float64: {_one_line(error)}") from None
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for value in double.parameters():
            fan_in = value[0].numel() if value.dim() > 1 else 3
            value.uniform_(-1, 1, generator=generator).mul_((3 / fan_in) ** 0.5)
    return double


def _respond(part: nn.Module, channels: int) -> dict[str, Tensor | None]:
    """What `part` computes on fixed random input: outputs in both modes and, in training, every gradient."""
    generator = torch.Generator("cpu").manual_seed(1)
    torch.default_generator.manual_seed(2)  # so that what is random in a forward repeats; not CUDA's generators
    with torch.no_grad():
        output = _run(part.eval(), _normal((PROBE[0], channels, *PROBE[1:]), generator))
    x = _normal((TRAINING_PROBE[0], channels, *TRAINING_PROBE[1:]), generator).requires_grad_(True)
    # Not a leaf, so that a forward that works in place on what it is given gets as far as to be told of.
    trained = _run(part.train(), x * 1)
    grad = _normal(trained.shape, generator)
    named = {"the input": x, **dict(part.named_parameters())}
    grads: Iterable[Tensor | None] = [None] * len(named)  # of a forward that detaches its output
    if trained.requires_grad:
        grads = torch.autograd.grad(trained, list(named.values()), grad, allow_unused=True)
    responses: dict[str, Tensor | None] = {"output": output, "output in training mode": trained.detach()}
    return responses | {f"gradient of {name}": value for name, value in zip(named, grads, strict=True)}


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    # On the CPU whatever the caller's default device is.
    return torch.randn(*shape, dtype=torch.float64, device="cpu", generator=generator)


def _run(part: nn.Module, x: Tensor) -> Tensor:
    given = x.detach().clone()
    y = part(x)
    if not isinstance(y, Tensor):
        raise TypeError(f"it returns a {type(y).__name__}, not a tensor")
    if not torch.equal(x, given):
        raise Mismatch("its forward changes its input in place, which others may read afterwards")
    return y


def _first_difference(wanted: dict[str, Tensor | None], got: dict[str, Tensor | None]) -> tuple[float, str] | None:
    """Relative size and name of the first response that is not the same, or None."""
    for what, a in wanted.items():
        size = _difference(a, got[what])
        if not size <= TOLERANCE:  # NaN counts as different
            return size, what
    return None


def _difference(a: Tensor | None, b: Tensor | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    return float((a - b).abs().max() / _largest([a, b]))


def _largest(values: Iterable[Tensor]) -> float:
    return max(1.0, *(float(value.abs().max()) for value in values))


def _one_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
