"""Whether code that runs is transformed by torch.func, or may carry forward-mode derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _by_functorch() -> bool:
    active: bool = torch._C._are_functorch_transforms_active()
    return active


# What `torch.compiler.assume_constant_result` sets, without its import of dynamo. The stack of transforms is guarded
# anyway; a call in the compiled graph would keep that out of PyTorch's caches.
_by_functorch._dynamo_marked_constant = True  # type: ignore[attr-defined]


def transformed() -> bool:
    """Kernels have rules for autograd only: elsewhere they fail or, worse, lose a derivative. The reference has all.

    Within `forward_ad.dual_level` any tensor may have a tangent, weights too, so that whole levels count.
    """
    return _by_functorch() or forward_ad._current_level >= 0


def is_transformed(x: Tensor) -> bool:
    """Whether derivatives by this tensor, or a batch of it, may be what is transformed for."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x) or has_tangent(x)


def has_tangent(*values: Any) -> bool:
    """Whether a tensor among these carries a forward-mode derivative."""
    if forward_ad._current_level < 0:
        return False
    return any(isinstance(v, Tensor) and forward_ad.unpack_dual(v).tangent is not None for v in values)
