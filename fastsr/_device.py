"""Devices: the one that a name means, and what GPU kernels of both kinds ask of a map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsr.errors import InputError

MIN_CAPABILITY = (8, 0)  # Ampere: bfloat16 on tensor cores, and what Triton itself asks for
MAX_PIXELS = 2**31  # of one image: pixels are counted in 32 bits within an image, addresses in 64


def find_device(
    name: str | int | torch.device, label: str | None = None, types: Sequence[str] | None = None
) -> torch.device:
    """The device called `name`; "auto" is the first GPU, or the CPU.

    Args:
        name: as `torch.device` takes it, or "auto".
        label: what an error calls it.
        types: the device types that will do, all if None.

    Raises:
        InputError: it is not there, or of another type.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it holds shapes without values")
        if types is not None and device.type not in types:
            raise RuntimeError(f"only {' and '.join(types)} will do")
    except Exception as error:  # PyTorch answers with half a dozen types, AssertionError among them
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(f"{label or f'the device {str(name)!r}'} cannot be used here ({reason}); try cpu") from error
    return device


def gpu_architecture(x: Tensor) -> str:
    """Such as "sm_90" or "gfx942", of the GPU that `x` is on. Traceable."""
    properties = torch.cuda.get_device_properties(x.device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def _convolutions_in_tf32() -> bool:
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    found: bool = conv.fp32_precision == "tf32"
    return found


# Dynamo does not look into torch.backends: it takes what is set as it compiles.
_convolutions_in_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def allows_tf32(x: Tensor) -> bool:
    """Whether float32 maps on the device of `x` may be multiplied in TF32: where PyTorch lets its convolutions do so.

    In what torch.compile traces that is an unguarded constant, good enough for an order; operators ask when they run.
    """
    return x.is_cuda and torch.version.hip is None and _convolutions_in_tf32()


# Compiled code for GPUs: its name, the capability that it is for, whether it runs there only, whether it is PTX.
Code = tuple[str, tuple[int, int], bool, bool]


def parse_codes(names: str) -> tuple[Code, ...]:
    """What nvcc was asked for, "sm_86 sm_90a compute_120", the best that a GPU may run first."""
    codes: list[Code] = []
    for name in names.split():
        kind, _, version = name.partition("_")
        digits = version.rstrip("af")
        codes.append((name, (int(digits[:-1]), int(digits[-1])), digits != version, kind == "compute"))
    return tuple(sorted(codes, key=lambda code: (not code[3], code[1]), reverse=True))


def code_for(capability: tuple[int, int], codes: tuple[Code, ...]) -> str | None:
    """The name of the code that a GPU runs, or None. Traceable.

    Code runs on later minor versions of its generation, too, and with a letter on its own only; PTX on all later ones,
    for which the driver compiles it.
    """
    for name, wanted, only_there, is_ptx in codes:
        if wanted == capability:
            return name
        if not only_there and wanted <= capability and (is_ptx or wanted[0] == capability[0]):
            return name
    return None


def reason_against(kind: str, x: Tensor, dtypes: Sequence[torch.dtype], devices: Sequence[str]) -> str | None:
    """Why GPU kernels of `kind`, for `dtypes` on `devices`, cannot take maps like `x`, or None.

    Traceable: plain values and tensor metadata.
    """
    if x.device.type not in devices:
        return f"x is on {x.device.type}, the {kind} kernels run on {' or '.join(devices)}"
    if x.dtype not in dtypes:
        accepted = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        return f"x is {str(x.dtype).removeprefix('torch.')}, the {kind} kernel takes {accepted}"
    if x.dim() == 4 and x.shape[2] * x.shape[3] >= MAX_PIXELS:
        return f"x has images of {x.shape[2]}x{x.shape[3]} pixels, the {kind} kernels take fewer than 2**31"
    if x.device.type == "cuda" and torch.version.hip is None:
        found = torch.cuda.get_device_properties(x.device)
        if (found.major, found.minor) < MIN_CAPABILITY:
            return f"the GPU is sm_{found.major}{found.minor}, the {kind} kernels need sm_80 or newer"
    return None
