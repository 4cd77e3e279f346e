"""CPU tensors that count as a GPU's, to see without one which of its kernels a call takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastsr import _cuda, _dispatch, _gpu_order, _triton

# What one kind of kernels has beside the operators, under the names of its calls.
ALONE = (
    *("alk_condense", "alk_conv_kept", "alk_conv_kept_backward", "alk_stage_kept", "alk_stage_kept_backward"),
    *("bsconv_stage", "bsconv_stage_backward", "conv_mix_reduce", "esa_cca", "esa_reduced", "pointwise_reduce"),
    *("alk_conv_packed", "alk_stage_packed", "alk_condense_packed", "alk_pack_together", "_triton_esa_cca"),
)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Within it both kinds of kernels can run CPU tensors, as far as the choice goes."""
    with (
        patch.object(_dispatch, "on_gpu", lambda x: True),
        patch.object(_cuda, "reason_against", lambda x, dtypes: None),
        patch.object(_triton, "reason_against", lambda x, dtypes: None),
    ):
        yield


@contextmanager
def order(**first: str) -> Iterator[None]:
    """Within it a table says what goes first: by operator or fusion "cuda" or "triton", or two of these.

    Then the first is for inference and the other for training. Of maps of 10,000 pixels and more the opposite holds.
    """
    opposite = {"cuda": "triton", "triton": "cuda"}
    entries = [
        {"operator": op, "precision": precision, "training": training, "pixels": pixels, "first": which}
        for op, kinds in first.items()
        for training, kind in zip((False, True), kinds.split() * 2, strict=False)
        for pixels, which in ((1_000, kind), (100_000, opposite[kind]))
        for precision in ("fp32", "fp16")
    ]
    table = _gpu_order.parse({"origin": "the test", "entries": entries})
    with (
        patch.object(_gpu_order, "TABLES", {"sm_90": table}),
        patch.object(_gpu_order, "gpu_architecture", lambda x: "sm_90"),
    ):
        yield


@contextmanager
def recorded() -> Iterator[list[str]]:
    """On a pretended GPU, the names of the operators that are called; their results are zeros."""
    library, calls = torch.library.Library("fastsr", "IMPL"), []

    def on_meta(x: Any) -> Any:
        return x.to("meta") if isinstance(x, Tensor) else x

    def zeros(x: Any) -> Any:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).zero_() if isinstance(x, Tensor) else x

    def recorder(name: str) -> Any:
        packet, overload = name.split(".") if "." in name else (name, "default")
        operator = getattr(getattr(torch.ops.fastsr, packet), overload)

        def run(*args: Any) -> Any:
            calls.append(name)
            return tree_map(zeros, operator(*tree_map(on_meta, args)))

        return run

    try:
        for op in _dispatch.OPERATORS:
            for name in (op, f"{op}_backward"):
                for backend in ("cuda", "triton"):
                    library.impl(f"{name}.{backend}", recorder(f"{name}.{backend}"), "CPU")
        for name in ALONE:
            library.impl(name, recorder(name), "CPU", allow_override=True)
        with pretended_gpu():
            yield calls
    finally:
        library._destroy()
