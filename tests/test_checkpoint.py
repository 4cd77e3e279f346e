"""Checkpoints: detection, wrappers, prefixes, damaged files, round trips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastsr
from fastsr.models.checkpoint import detect, read_state_dict

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("alkdnet", {"scale": 2, "num_block": 2, "num_feat": 16}),
    ("alkdnet", {"scale": 3, "num_block": 1, "lk_size": 5, "pixel_norm": False}),
    ("alkdnet", {"scale": 4, "num_block": 1, "lk_size": 11, "esa_channels": 8}),
    ("alkdnet", {"scale": 2, "num_block": 1, "conv": "BSConvU"}),
    ("bsrn", {"scale": 3, "num_block": 2, "num_feat": 32}),
    ("mlrn", {"scale": 4, "num_block": 2, "num_feat": 20}),
    ("mlrn", {"scale": 2, "num_block": 1, "conv_mix": False}),
    ("mlrn", {"scale": 2, "num_block": 1, "depthwise_conv": False}),
    ("mlrn_ntire", {"scale": 4}),
    ("rlfn", {"scale": 2, "num_block": 1}),
    ("rlfn_ntire", {"scale": 4}),
]
OFFICIAL = {
    "net_g_ALKDN_x2.pth": ("alkdnet", 2, 372_716),
    "net_g_ALKDN_x3.pth": ("alkdnet", 3, 381_371),
    "net_g_ALKDN_x4.pth": ("alkdnet", 4, 393_488),
    "net_g_BSRN_x2.pth": ("bsrn", 2, 331_628),
    "net_g_BSRN_x3.pth": ("bsrn", 3, 340_283),
    "net_g_BSRN_x4.pth": ("bsrn", 4, 352_400),
    "rlfn_x2.pth": ("rlfn", 2, 526_856),
    "rlfn_x4.pth": ("rlfn", 4, 543_740),
    "rlfn_ntire_x4.pth": ("rlfn", 4, 317_218),
}


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_detects_the_network_from_its_tensors(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    net = fastsr.create_model(name, **settings)
    torch.save({"params": net.state_dict()}, tmp_path / "net.pth")
    loaded = fastsr.load(tmp_path / "net.pth")
    assert loaded.architecture == net.architecture
    told_by_tensors = net.config.keys() - {"activation"}
    expected = {k: net.config[k] for k in told_by_tensors}
    if net.architecture == "rlfn":
        expected["mid_channels"] = net.config["mid_channels"] or net.config["num_feat"]
    if net.config.get("conv") == "BSConvU":
        expected["lk_size"] = loaded.config["lk_size"]  # the network has no large kernel
    if net.config.get("conv_mix") is False:
        expected["depthwise_conv"] = False
    assert {k: loaded.config[k] for k in told_by_tensors} == expected
    assert not loaded.training
    assert_same_weights(net, loaded)


@pytest.mark.parametrize(("name", "settings"), [*VARIANTS, ("mlrn", {"activation": "leaky_relu", "bilinear": False})])
def test_save_and_load_keep_every_setting(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    net = fastsr.create_model(name, **settings)
    fastsr.save(net, tmp_path / "net.safetensors")
    loaded = fastsr.load(tmp_path / "net.safetensors")
    assert loaded.config == net.config and type(loaded) is type(net)
    assert_same_weights(net, loaded)
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize(
    "wrapper", ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")
)
def test_wrappers_and_prefixes(wrapper: str, tmp_path: Path) -> None:
    net = fastsr.create_model("alkdnet", num_block=1, num_feat=8)
    state = {f"module._orig_mod.netG.{k}": v for k, v in net.state_dict().items()}
    torch.save({wrapper: state, "iteration": 5}, tmp_path / "net.pth")
    assert_same_weights(net, fastsr.load(tmp_path / "net.pth"))


def test_ema_comes_before_raw_weights_and_nested_wrappers_are_opened(tmp_path: Path) -> None:
    raw, ema = (fastsr.create_model("mlrn", num_block=1, num_feat=8) for _ in range(2))
    torch.save({"params": raw.state_dict(), "params_ema": ema.state_dict()}, tmp_path / "a.pth")
    assert_same_weights(ema, fastsr.load(tmp_path / "a.pth"))
    torch.save({"state_dict": {"params": raw.state_dict()}}, tmp_path / "b.pth")
    assert_same_weights(raw, fastsr.load(tmp_path / "b.pth"))


def test_plain_safetensors_and_dtype(tmp_path: Path) -> None:
    net = fastsr.create_model("bsrn", num_block=1, num_feat=8)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    assert_same_weights(net, fastsr.load(tmp_path / "net.safetensors"))
    half = fastsr.load(tmp_path / "net.safetensors", dtype=torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}


@pytest.mark.parametrize(
    ("name", "channels", "overrides"),
    [
        ("alkdnet", (1, 1), {}),
        ("alkdnet", (1, 3), {}),
        ("bsrn", (4, 4), {}),
        ("mlrn", (1, 1), {}),
        ("mlrn", (4, 4), {}),
        ("mlrn", (4, 1), {"num_out_ch": 1}),
        ("rlfn", (1, 3), {}),
        ("rlfn", (3, 1), {"num_out_ch": 1}),
        ("rlfn", (3, 1), {"scale": 2}),
        ("rlfn", (3, 1), {"upscale": 2}),
    ],
)
def test_other_channels_than_rgb(
    name: str, channels: tuple[int, int], overrides: dict[str, Any], tmp_path: Path
) -> None:
    settings: dict[str, Any] = dict(zip(("num_in_ch", "num_out_ch"), channels, strict=True))
    if channels[0] != channels[1]:
        settings |= {"alkdnet": {"anchor_residual": False}, "mlrn": {"bilinear": False}}.get(name, {})
    net = fastsr.create_model(name, scale=2, num_block=1, num_feat=8, **settings)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    loaded = fastsr.load(tmp_path / "net.pth", **overrides)
    assert {key: loaded.config[key] for key in settings} == settings
    assert loaded.scale == 2
    assert_same_weights(net, loaded)


@pytest.mark.parametrize("overrides", [{"num_out_ch": -1}, {"num_out_ch": "3"}, {"scale": "2"}, {"scale": 0}])
def test_overrides_that_are_no_counts(overrides: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(fastsr.InputError, match=f"{next(iter(overrides))} is {next(iter(overrides.values()))!r}; pass"):
        fastsr.load(valid_file(tmp_path), **overrides)


def test_an_enlargement_that_is_not_told(tmp_path: Path) -> None:
    torch.save(fastsr.create_model("rlfn", num_block=1, num_feat=8, num_out_ch=2).state_dict(), tmp_path / "net.pth")
    with pytest.raises(
        fastsr.CheckpointError, match=r"net\.pth: upsampler.* 8 channels, .* with 3 channels; pass num_out_ch or scale"
    ):
        fastsr.load(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": "tpu"}, "the device 'tpu' cannot be used here"),
        ({"device": torch.device("cuda", 99)}, "the device 'cuda:99' cannot be used here"),
        ({"device": "meta"}, "it holds shapes without values"),
        ({"dtype": torch.int8}, "load: dtype is torch.int8; pass torch.float32"),
        ({"dtype": "float16"}, "load: dtype is 'float16'; pass torch.float32"),
    ],
)
def test_placements_that_are_not_there(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(fastsr.InputError) as caught:
        fastsr.load(valid_file(tmp_path), **settings)
    assert says in str(caught.value)


@pytest.mark.parametrize("metadata", ['{"architecture": "mlrn"}', '{"architecture": "mlrn", "config": [1]}'])
def test_metadata_without_settings(metadata: str, tmp_path: Path) -> None:
    state = fastsr.create_model("mlrn", num_block=1, num_feat=8).state_dict()
    save_file(state, tmp_path / "net.safetensors", metadata={"fastsr": metadata})
    with pytest.raises(fastsr.CheckpointError, match="lacks the network's settings"):
        fastsr.load(tmp_path / "net.safetensors")


def test_overrides_reach_what_tensors_cannot_tell(tmp_path: Path) -> None:
    net = fastsr.create_model("alkdnet", num_block=1, num_feat=8, anchor_residual=False)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    assert fastsr.load(tmp_path / "net.pth").config["anchor_residual"] is True
    assert fastsr.load(tmp_path / "net.pth", anchor_residual=False).config["anchor_residual"] is False


@pytest.mark.parametrize("file", OFFICIAL)
def test_official_checkpoints(shared: Path, file: str) -> None:
    architecture, scale, parameters = OFFICIAL[file]
    net = fastsr.load(shared / "weights" / file)
    assert (net.architecture, net.scale) == (architecture, scale)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.input_range == (255.0 if architecture == "rlfn" else 1.0)
    state, _ = read_state_dict(shared / "weights" / file)
    assert net.load_state_dict(state, strict=True)


def valid_file(folder: Path) -> Path:
    path = folder / "net.pth"
    torch.save({"params": fastsr.create_model("mlrn", num_block=1, num_feat=8).state_dict()}, path)
    return path


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(fastsr.CheckpointError, match=r"none\.pth does not exist; pass a"):
        fastsr.load(tmp_path / "none.pth")
    with pytest.raises(fastsr.CheckpointError, match="is a folder"):
        fastsr.load(tmp_path)


@pytest.mark.parametrize("keep", (0, 10, 1000, -200))
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    path = valid_file(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(fastsr.CheckpointError, match=r"net\.pth is not a readable checkpoint"):
        fastsr.load(path)


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    fastsr.save(fastsr.create_model("mlrn", num_block=1, num_feat=8), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(fastsr.CheckpointError, match="not a readable checkpoint"):
        fastsr.load(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"params": {}}, torch.zeros(3)])
def test_files_without_named_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(fastsr.CheckpointError, match="tensors"):
        fastsr.load(tmp_path / "net.pth")


@pytest.mark.parametrize(
    "name, says", [("notes.pth", "no tensors in it that are safe to load"), ("a.state", "beside it")]
)
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, says: str) -> None:
    """Without PyTorch's advice to load them unprotected."""
    (tmp_path / name).write_text("name: tiny\n")
    with pytest.raises(fastsr.CheckpointError) as caught:
        fastsr.load(tmp_path / name)
    assert says in str(caught.value) and "weights_only" not in str(caught.value)


def test_saved_weights_can_be_read_like_any_file(tmp_path: Path) -> None:
    fastsr.save(fastsr.create_model("mlrn", scale=2, num_feat=4, num_block=1), tmp_path / "a.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save(fastsr.create_model("mlrn", num_block=1, num_feat=8), tmp_path / "pickled.pth")  # a whole module
    with pytest.raises(fastsr.CheckpointError, match="not a readable checkpoint"):
        fastsr.load(tmp_path / "pickled.pth")


def test_checkpoint_of_another_network() -> None:
    with pytest.raises(fastsr.CheckpointError, match=r"of no network that fastsr knows .*body\.0"):
        detect({"body.0.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("conv_2.bias"), "1 missing (conv_2.bias)"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected (extra)"),
        (lambda s: s.update({"conv_2.bias": torch.zeros(9)}), "1 of another shape (conv_2.bias)"),
        (lambda s: s.pop("upsampler.0.weight"), "lacks a part ('upsampler.0.weight')"),
        (lambda s: s.update({"upsampler.0.weight": torch.zeros(10, 8, 3, 3)}), "gives 10 channels"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, change: Any, says: str) -> None:
    state = fastsr.create_model("mlrn", num_block=1, num_feat=8).state_dict()
    change(state)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(fastsr.CheckpointError) as caught:
        fastsr.load(tmp_path / "net.pth")
    assert says in str(caught.value)


def test_save_refuses_other_formats_and_unwritable_folders(tmp_path: Path) -> None:
    net = fastsr.create_model("mlrn", num_block=1, num_feat=8)
    with pytest.raises(fastsr.CheckpointError, match=r"does not end in \.safetensors"):
        fastsr.save(net, tmp_path / "net.pth")
    with pytest.raises(fastsr.CheckpointError, match="cannot be written"):
        fastsr.save(net, tmp_path / "missing" / "net.safetensors")


@pytest.mark.parametrize("scale", [2, 3])
def test_another_scale_than_the_file_s_is_refused(tmp_path: Path, scale: int) -> None:
    torch.save(fastsr.create_model("bsrn", scale=4, num_block=1, num_feat=8).state_dict(), tmp_path / "net.pth")
    with pytest.raises(fastsr.CheckpointError, match=f"does not fit bsrn x{scale}"):
        fastsr.load(tmp_path / "net.pth", scale=scale)
