"""How many selections of floats (FSEL) a compiled kernel may have: one for an element, each time its code passes it.

What calls for more is libm's: its `erff` takes nine where the GELUs of gelu.cuh, in each accuracy, take none, and their
derivative one. A count is of unrolled code, so that of the elements which a thread holds at once has to be known.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Selected(NamedTuple):
    """The most selections of a kernel, from its template arguments, and what they are."""

    most: Callable[..., int]
    elements: str


def _rows(number: str) -> int:
    """Of ForwardMix, whose lanes take two channels of them."""
    return 8 if number in ("half", "bf16") else 4


def _reduced_lane(number: str) -> int:
    """Channels of conv1 that a lane of conv_mix_reduce has."""
    return 2 if number == "Tf32" else 4


def _conv3x3(number: str, _: str) -> int:
    wide = 2 * 8 if number in ("half", "bf16") else 2 * 4
    return 2 * (wide + 4 * 2 + 4 * 1)


def _stage(number: str, stage: str) -> int:
    """Elements of D that a lane holds at once; in TF32 lanes exchange four."""
    return (8 + 4 * (number == "Tf32")) * (stage == "true")


def _mix_backward(number: str) -> int:
    return 3 * 2 * {"Tf32": 16, "float": 8}.get(number, 32)


_NORM = Selected(lambda *_: 2 * 8, "eight channels, of which both passes of `normalise` mask those that are missing")
_BILINEAR = Selected(lambda *_: 4, "a pixel's two weights in each direction")
KERNELS = {
    "alk_forward_kernel": Selected(lambda *_: 8, "the first of eight sums, which shifts the others"),
    "alk_condense_kernel": Selected(lambda *_: 8 + 16, "the same; two pixels' eight channels"),
    "alk_branch_backward_kernel": Selected(lambda *_: 3 * 8, "a channel's eight results in three branches"),
    "alk_norm_backward_kernel": Selected(lambda _, blocks: 2 * 8 * int(blocks), "channels of v and of its gradient"),
    "bsconv_kernel": Selected(
        lambda number, _, stage: 3 * (2 * _rows(number) + _stage(number, stage)),
        "two channels of a column and eight of D, with LeakyReLU for each accuracy",
    ),
    "bsconv_filters_kernel": Selected(
        lambda number, _, stage: 2 * _rows(number) + _stage(number, stage), "two channels of a column and eight of D"
    ),
    "cca_sums_kernel": _NORM,
    "cca_apply_kernel": _NORM,
    "cca_apply_backward_kernel": _NORM,
    "cca_finish_kernel": Selected(lambda *_: 2 * 8 + 15, "as cca_apply_kernel; 8, 4, 2 and 1 parts' moments at once"),
    "cca_attention_kernel": Selected(lambda _: 2 * 4, "four numbers of float64, each of two registers"),
    "cca_attention_backward_kernel": Selected(lambda _: 2 * 3, "three numbers of float64"),
    "conv3x3_kernel": Selected(_conv3x3, "pixels by 16 bytes, two and one channels; GELU' and LeakyReLU'"),
    "conv_mix_kernel": Selected(
        lambda number, reduces: 3 * _reduced_lane(number) * (reduces == "true"), "conv1's biases, in three dtypes"
    ),
    "conv_mix_backward_kernel": Selected(_mix_backward, "what both activations take; GELU', LeakyReLU', LeakyReLU"),
    "esa_enlarge_backward_kernel": _BILINEAR,
    "esa_moments_kernel": Selected(lambda _: 2 + 4, "whether two pixels count; four merges of moments"),
    "esa_small_kernel": Selected(
        lambda number: 7 * 4 + 5 * 4 + {"Tf32": 2 * 4, "float": 4 * 3 * 4}.get(number, 4 * 4),
        "four channels of seven pixels; five first values under four conditions; of two or four pixels' results four "
        "channels, with erfcf in float32",
    ),
    "esa_small_backward_kernel": Selected(
        lambda number: 2 * 5 * (number == "float"), "an input and four gradients, by erfcf"
    ),
    "lr_gradient_kernel": _BILINEAR,
    "pixel_norm_kernel": _NORM,
    "pixel_norm_backward_kernel": _NORM,
    "product_kernel": Selected(
        lambda _, blocks, gradient: 16 * int(blocks) * (gradient == "true"), "two pixels' eight channels of each block"
    ),
}


def most(key: str) -> int:
    """Of a kernel such as product_kernel<half, 2, true>/sm_80."""
    name, *arguments = re.findall(r"\w+", key.split("/")[0])
    return KERNELS[name].most(*arguments) if name in KERNELS else 0


def too_many(kernels: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The kernels that have more."""
    found = {key: value["opcodes"].get("FSEL", 0) for key, value in kernels.items()}
    return {key: f"{count}, of at most {most(key)}" for key, count in found.items() if count > most(key)}
