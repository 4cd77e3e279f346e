"""Networks by name."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

from fastsr.errors import InputError, UnknownModelError
from fastsr.models.alkdnet import BSRN, ALKDNet
from fastsr.models.base import SuperResolutionNet
from fastsr.models.checkpoint import load
from fastsr.models.mlrn import MLRN, RLFN

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


class ModelEntry(NamedTuple):
    """One registered network: its class, the scales the paper trains, and what differs from the class's defaults."""

    cls: type[ALKDNet] | type[BSRN] | type[MLRN] | type[RLFN]
    scales: tuple[int, ...]
    settings: dict[str, Any]
    summary: str


_MODELS: dict[str, ModelEntry] = {
    "alkdnet": ModelEntry(ALKDNet, (2, 3, 4), {}, "asymmetric large-kernel distillation network"),
    "bsrn": ModelEntry(BSRN, (2, 3, 4), {}, "blueprint separable residual network"),
    "mlrn": ModelEntry(MLRN, (2, 3, 4), {}, "mixer-based local residual network"),
    "mlrn_ntire": ModelEntry(
        MLRN, (4,), {"num_feat": 50, "num_block": 4, "input_range": 255.0}, "MLRN of the NTIRE 2023 challenge"
    ),
    "rlfn": ModelEntry(RLFN, (2, 4), {}, "residual local feature network"),
    "rlfn_ntire": ModelEntry(
        RLFN, (4,), {"num_feat": 46, "mid_channels": 48, "num_block": 4}, "RLFN of the NTIRE 2022 challenge"
    ),
}
_ALIASES = {"alkdn": "alkdnet"}


def list_models() -> list[str]:
    """Names that `create_model` accepts."""
    return sorted(_MODELS)


def model_entry(name: str) -> ModelEntry:
    """The registry entry of `name`, in any case and with "ALKDN" for ALKDNet.

    Raises:
        UnknownModelError: no network has that name.
    """
    key = str(name).lower().replace("-", "_")
    key = _ALIASES.get(key, key)
    if key not in _MODELS:
        near = difflib.get_close_matches(key, _MODELS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownModelError(f"no network is called {name!r}; {hint}there are {', '.join(list_models())}")
    return _MODELS[key]


def create_model(
    name: str, *, scale: int | None = None, pretrained: bool = False, **overrides: Any
) -> SuperResolutionNet:
    """Build a network with freshly initialised weights, or with the trained ones that ship with fastsr.

    Args:
        name: one of `list_models()`, in any case; "ALKDN" means "alkdnet".
        scale: enlargement; by default the smallest that the paper trains.
        pretrained: take the weights in fastsr/weights; the network is in eval mode then.
        overrides: any keyword of the network's class, for example `lk_size=7`.

    Raises:
        UnknownModelError: no network has that name.
        InputError: an unknown keyword or a value outside what the network accepts, or no weights of this network ship.
    """
    entry = model_entry(name)
    if pretrained:
        return _pretrained(name, scale if scale is not None else overrides.pop("upscale", None), overrides)
    accepted = [p for p in inspect.signature(entry.cls.__init__).parameters if p not in ("self", "scale")]
    for key in overrides:
        if key not in accepted:
            near = difflib.get_close_matches(key, accepted, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{name} has no setting {key!r}; {hint}there are scale, {', '.join(accepted)}")
    if scale is None and overrides.get("upscale") is None:
        scale = entry.scales[0]
    return entry.cls(scale=scale, **{**entry.settings, **overrides})


def _pretrained(name: str, scale: int | None, overrides: dict[str, Any]) -> SuperResolutionNet:
    entry = model_entry(name)
    key = next(known for known, other in _MODELS.items() if other is entry)
    scale = entry.scales[0] if scale is None else scale
    shipped = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
    if f"{key}_x{scale}" not in shipped:
        raise InputError(
            f"no trained weights of {name} x{scale} come with fastsr, only {', '.join(shipped) or 'none at all'}; "
            "train them with `fastsr train`, or load a checkpoint with fastsr.load"
        )
    if overrides:
        raise InputError(
            f"the trained weights of {key} x{scale} fit the network as it is; leave out {', '.join(sorted(overrides))}"
        )
    return load(WEIGHTS / f"{key}_x{scale}.safetensors")
