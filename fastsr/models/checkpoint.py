"""Reading and writing checkpoints, and telling from the file which network it belongs to."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fastsr._device import find_device
from fastsr._files import atomic_write
from fastsr.errors import CheckpointError, FastsrError, InputError
from fastsr.models.alkdnet import BSRN, ALKDNet
from fastsr.models.base import SuperResolutionNet
from fastsr.models.mlrn import MLRN, RLFN
from fastsr.ops._checks import DTYPES

StateDict = dict[str, Tensor]

WRAPPERS = ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")
PREFIXES = ("module.", "netG.", "_orig_mod.")
_METADATA = "fastsr"
_CLASSES: dict[str, type[SuperResolutionNet]] = {c.architecture: c for c in (ALKDNet, BSRN, MLRN, RLFN)}


def load(
    path: str | os.PathLike[str],
    *,
    device: str | int | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> SuperResolutionNet:
    """Load a checkpoint into the network it belongs to.

    The network, its scale, channels, blocks, kernel size and input range are read from the file: from the names and
    shapes of its tensors, or from fastsr's own metadata if `save` wrote it. Wrappers (`params_ema`, `state_dict`, ...)
    and prefixes (`module.`, `netG.`, `_orig_mod.`) are taken off; loading is strict.

    Args:
        path: a `.pth`/`.pt`/`.ckpt` file (read with weights_only) or a `.safetensors` file.
        device, dtype: where and in what precision the network is placed.
        overrides: settings that a file's tensors cannot tell, such as `anchor_residual=False`, or not for certain, such
            as `num_out_ch=1`.

    Returns:
        The network in eval mode.

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, or of a network fastsr does not know.
        InputError: an override that the network does not accept, a device that is not there, or another dtype.
    """
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise InputError(f"load: dtype is {dtype!r}; pass torch.float32, float16, bfloat16 or float64")
    device = find_device(device)
    state, metadata = read_state_dict(path)
    if metadata is not None:
        architecture, config = metadata["architecture"], metadata["config"]
    else:
        architecture, config = detect(state, str(path), overrides)
    try:
        net = _CLASSES[architecture](**{**config, **overrides})
    except TypeError as error:
        raise CheckpointError(f"{path}: {architecture} cannot be built with these settings ({error})") from error
    _load_strict(net, state, str(path))
    return net.to(device=device, dtype=dtype).eval()


def save(net: SuperResolutionNet, path: str | os.PathLike[str]) -> None:
    """Write the weights of `net` as safetensors, with the settings that `load` needs to rebuild it.

    The file appears whole or not at all.

    Raises:
        CheckpointError: the file cannot be written.
        InputError: `net` is none of fastsr's networks, or frozen.
    """
    from safetensors.torch import save as serialise

    if not isinstance(net, SuperResolutionNet):
        raise InputError(f"save: net is a {type(net).__name__}; pass a network of fastsr's, the one it was made from")
    if net.frozen:
        raise InputError(f"save: net is a frozen {type(net).__name__}; pass the network that it was made from")
    target = Path(path)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target} does not end in .safetensors; fastsr writes no other format")
    tensors = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    described = json.dumps({"architecture": net.architecture, "config": net.config})
    try:
        atomic_write(target, serialise(tensors, metadata={_METADATA: described}))
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written ({error.strerror}); choose another folder") from error


def read_state_dict(path: str | os.PathLike[str]) -> tuple[StateDict, dict[str, Any] | None]:
    """The tensors of a checkpoint without wrappers and prefixes, and fastsr's metadata if the file has it.

    Raises:
        CheckpointError: the file is missing, damaged or holds no tensors by name.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise CheckpointError(f"{file} {what}; pass a .pth or .safetensors checkpoint")
    if file.suffix == ".state":
        raise CheckpointError(
            f"{file} is the state of a training run; pass best.safetensors or last.safetensors beside it"
        )
    try:
        content, metadata = _read(file)
    except FastsrError:
        raise
    except Exception as error:  # torch.load has no common error type for damaged files
        first = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # PyTorch's advice would be to load it without protection
            first = "PyTorch finds no tensors in it that are safe to load"
        raise CheckpointError(
            f"{file} is not a readable checkpoint ({first}); it may be cut short or of another kind, so get it again"
        ) from error
    return _unwrap(content, file), metadata


def _read(file: Path) -> tuple[Any, dict[str, Any] | None]:
    if file.suffix != ".safetensors":
        return torch.load(file, map_location="cpu", weights_only=True), None
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
        described = (opened.metadata() or {}).get(_METADATA)
    if described is None:
        return tensors, None
    metadata = json.loads(described)
    if metadata.get("architecture") not in _CLASSES:
        raise CheckpointError(
            f"{file} was written for a network {metadata.get('architecture')!r}, which this fastsr lacks; update fastsr"
        )
    if not isinstance(metadata.get("config"), dict):
        raise CheckpointError(f"{file} lacks the network's settings in fastsr's metadata; get the file again")
    return tensors, metadata


def _unwrap(content: Any, file: Path) -> StateDict:
    for _ in range(3):  # a trainer's file may wrap a framework's
        inner = next((content[k] for k in WRAPPERS if isinstance(content, Mapping) and k in content), None)
        if not isinstance(inner, Mapping):
            break
        content = inner
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}; pass a checkpoint with tensors by name")
    state = {_strip(str(key)): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{file} holds no tensors; pass a checkpoint of {', '.join(_CLASSES)}")
    return state


def _strip(key: str) -> str:
    while prefix := next((p for p in PREFIXES if key.startswith(p)), None):
        key = key[len(prefix) :]
    return key


def detect(
    state: StateDict, name: str = "the checkpoint", known: Mapping[str, Any] = MappingProxyType({})
) -> tuple[str, dict[str, Any]]:
    """The architecture of a state dict and the settings of its class, from names, shapes and the settings `known`.

    Raises:
        CheckpointError: the tensors are of no network that fastsr knows.
    """
    try:
        if "B1.c1_d.weight" in state and "fea_conv.pw.weight" in state:
            return _detect_blueprint(state, known)
        if "block_1.c1_r.weight" in state and "conv_1.weight" in state:
            return _detect_residual(state, known)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{name} resembles a network that fastsr knows but lacks a part ({error}); get the file again"
        ) from error
    some = ", ".join(sorted(state)[:3])
    raise CheckpointError(
        f"{name} is of no network that fastsr knows (its tensors begin with {some}); accepted are {', '.join(_CLASSES)}"
    )


def _count(state: StateDict, pattern: str) -> int:
    return max(int(m.group(1)) for key in state if (m := re.match(pattern, key)))


def _ends(state: StateDict, last: str, num_in_ch: int, known: Mapping[str, Any]) -> dict[str, Any]:
    """num_in_ch, num_out_ch and scale; as many channels out as in, or 3, unless it is known."""
    channels = state[last].shape[0]
    certain, scale = _count_in(known, "num_out_ch"), _count_in(known, "scale", "upscale")
    out = [certain] if certain else [num_in_ch, 3]
    for num_out_ch in (*out, max(1, channels // scale**2)) if scale else out:
        found = math.isqrt(channels // num_out_ch)
        if found and num_out_ch * found * found == channels:
            return {"num_in_ch": num_in_ch, "num_out_ch": num_out_ch, "scale": found}
    raise CheckpointError(
        f"{last} gives {channels} channels, which does not tell the enlargement of an image with "
        f"{' or '.join(map(str, dict.fromkeys(out)))} channels; pass num_out_ch or scale as they were in training"
    )


def _count_in(known: Mapping[str, Any], *names: str) -> int | None:
    """The first of these settings; the network says what is wrong with one that is no count."""
    return next((value for name in names if isinstance(value := known.get(name), int) and value > 0), None)


def _residual(setting: str, ends: dict[str, Any]) -> dict[str, Any]:
    """There is none between images of different channels; otherwise tensors do not tell."""
    return {} if ends["num_in_ch"] == ends["num_out_ch"] else {setting: False}


def _detect_blueprint(state: StateDict, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    num_in_ch = state["fea_conv.pw.weight"].shape[1] // 4
    config: dict[str, Any] = {
        "num_feat": state["B1.c1_d.weight"].shape[1],
        "num_block": _count(state, r"B(\d+)\."),
        "esa_channels": state["B1.esa.conv1.weight"].shape[0],
    }
    # ALKDNet and BSRN share their names but for the tail; a network with LoRA1 is ALKDNet in any case.
    tail = "upsampler.upsampleOneStep.0.weight"
    large = "B1.c1_r.LoRA1.weight" in state
    if tail in state and not large:
        return BSRN.architecture, {**config, **_ends(state, tail, num_in_ch, known)}
    ends = _ends(state, "c_up.weight", num_in_ch, known)
    config |= {
        **ends,
        **_residual("anchor_residual", ends),
        "conv": "LargeKernelConv" if large else "BSConvU",
        "pixel_norm": "B1.pixel_norm.weight" in state,
    }
    if large:
        config["lk_size"] = state["B1.c1_r.LoRA1.weight"].shape[2]
    return ALKDNet.architecture, config


def _detect_residual(state: StateDict, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    num_feat, num_in_ch = state["conv_1.weight"].shape[:2]
    ends = _ends(state, "upsampler.0.weight", num_in_ch, known)
    config: dict[str, Any] = {
        **ends,
        "num_feat": num_feat,
        "num_block": _count(state, r"block_(\d+)\."),
        "esa_channels": state["block_1.esa.conv1.weight"].shape[0],
    }
    if "block_1.c3_r.weight" in state:
        return RLFN.architecture, {**config, "mid_channels": state["block_1.c1_r.weight"].shape[0]}
    config |= {
        **_residual("bilinear", ends),
        "conv_mix": "block_1.pwc.weight" in state,
        "depthwise_conv": "block_1.dwc.weight" in state,
        # The challenge variant is the only MLRN that works on 0..255.
        "input_range": 255.0 if (num_feat, config["num_block"]) == (50, 4) else 1.0,
    }
    return MLRN.architecture, config


def _load_strict(net: SuperResolutionNet, state: StateDict, name: str) -> None:
    own = net.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{name} does not fit {net.architecture} x{net.scale}: tensors {'; '.join(problems)}; "
            "pass the settings it was trained with, or another file"
        )
    net.load_state_dict(state)
