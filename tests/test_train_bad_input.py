"""Bad input to training: one sentence, exit status 2, and no time or file lost before."""

from __future__ import annotations

import pytest
from image_helpers import picture
from train_helpers import photographs, tiny

from fastsr.cli import main
from fastsr.errors import InputError
from fastsr.imageio import Image, write_image
from fastsr.train import loop, sources, train
from fastsr.train.start import make_network


def _refused(capsys, *arguments: str) -> str:
    """The one sentence of a command that ends with status 2."""
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("fastsr: error: ") and "\n" not in error
    return error


@pytest.fixture
def undecoded(monkeypatch):
    """No image may be read: mistakes must show before."""

    def read(*_):
        raise AssertionError("an image was read before the mistake was told")

    monkeypatch.setattr(sources.FolderSource, "read", read)


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(
    "override, message",
    [
        ("data.hr=nowhere", "nowhere is not a folder"),
        ("data.lr=nowhere", "nowhere is not a folder"),
        ("data.meta_info=nowhere.txt", "nowhere.txt cannot be read"),
        ("validation.hr.val=nowhere", "nowhere is not a folder"),
        ("optimizer.accumulate=3", "must be a multiple of 3"),
        ("compute.device=abacus", "compute.device='abacus' cannot be used"),
        ("compute.device=cuda:99", "compute.device='cuda:99' cannot be used"),
        ("data.patch=8", "mlrn needs at least"),
        ("data.patch=24", "need at least 48x48"),
        ("model.name=mlrm", "did you mean 'mlrn'"),
        ("model.settings.num_fat=8", "did you mean 'num_feat'"),
        ("model.scale=0", "model.scale"),
        ("model.settings.num_feat=eight", "num_feat is 'eight'; pass a whole number"),
        ("model.settings.num_feat=0", "num_feat is 0; pass a whole number"),
        ("model.settings.num_in_ch=1", "num_in_ch is 1 and num_out_ch 3"),
        ("model.settings.num_in_ch=1 model.settings.num_out_ch=1", "1 channels in and 1 out"),
        ("validation.hr.val=small", "needs at least 30x30"),
        ("validation.hr.val=damaged", "0.png is damaged"),
        ("validation.hr.val=hr validation.lr.val=small", "0.png with small/0.png: the LR image is 20x20"),
        ("validation.hr.val=hr validation.lr.val=damaged", "damaged holds no LR image for 1.png"),
        ("model.warm_start=nowhere.pth", "nowhere.pth does not exist"),
        ("optimiser.lr=1", "did you mean optimizer"),
    ],
)
def test_one_sentence_and_status_2(tmp_path, capsys, monkeypatch, override, message):
    (tmp_path / "run.yaml").write_text(tiny(tmp_path).as_yaml())
    monkeypatch.chdir(tmp_path)
    for folder in ("small", "damaged"):
        (tmp_path / folder).mkdir()
    for i in range(5):
        write_image(tmp_path / "small" / f"{i}.png", Image(picture(20, 20)))
    (tmp_path / "damaged" / "0.png").write_bytes(b"no image")
    assert message in _refused(capsys, str(tmp_path / "run.yaml"), *override.split())
    assert not (tmp_path / "runs").exists()


def test_figures_without_a_measurement(capsys):
    assert "--json goes with --speed" in _refused(capsys, "--json", "figures.json", "mlrn_x2_cpu")


def test_zero_images(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(tiny(tmp_path).as_yaml())
    (tmp_path / "empty").mkdir()
    assert "holds no images" in _refused(capsys, str(tmp_path / "run.yaml"), f"data.hr={tmp_path / 'empty'}")


@pytest.mark.usefixtures("undecoded")
def test_hr_and_lr_that_do_not_match(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(tiny(tmp_path).as_yaml())
    lr = tmp_path / "lr"
    lr.mkdir()
    for i in range(5):  # of scale 2, but for the last one
        write_image(lr / f"{i}x2.png", Image(picture(20 + i, 23 + i // 2 - (i == 4))))
    said = _refused(capsys, str(tmp_path / "run.yaml"), f"data.lr={lr}")
    assert "4x2.png is 24x24 (width x height)" in said and "4.png of 50x48 needs one of 25x24" in said
    (lr / "3x2.png").unlink()
    assert "no LR image for 3" in _refused(capsys, str(tmp_path / "run.yaml"), f"data.lr={lr}")


def test_a_run_goes_on_with_its_own_recipe_only(tmp_path, capsys, monkeypatch):
    recipe = tiny(tmp_path)
    train(recipe)
    (tmp_path / "run.yaml").write_text(recipe.as_yaml())
    monkeypatch.setattr(loop, "open_pairs", lambda *_, **__: pytest.fail("images were read before the recipe"))
    said = _refused(capsys, str(tmp_path / "run.yaml"), "model.scale=3", "data.patch=15", "optimizer.lr=0.5")
    assert "data.patch: 16 -> 15; model.scale: 2 -> 3; optimizer.lr: 0.001 -> 0.5" in said


def test_a_warm_start_of_another_network_or_scale(tmp_path):
    """What fits is taken, and if nothing does, that is said; a scale is no reason to refuse the body of a network."""
    first = train(tiny(tmp_path)) / "last.safetensors"
    with pytest.raises(InputError, match="has no tensor that fits alkdnet x2"):
        make_network(tiny(tmp_path, "model.name=alkdnet", f"model.warm_start={first}").model)
    net = make_network(tiny(tmp_path, "model.scale=4", f"model.warm_start={first}").model)
    assert net.scale == 4


def test_no_room_for_the_lr_images(tmp_path, capsys):
    """A cache that cannot be written is not a damaged image."""
    (tmp_path / "run.yaml").write_text(tiny(tmp_path).as_yaml())
    (tmp_path / "file").write_text("")
    said = _refused(capsys, str(tmp_path / "run.yaml"), f"data.lr_cache={tmp_path / 'file'}")
    assert "cannot be made" in said


def test_a_run_folder_that_cannot_be_written(tmp_path, capsys):
    photographs(tmp_path / "hr")
    (tmp_path / "run.yaml").write_text(tiny(tmp_path).as_yaml())
    (tmp_path / "file").write_text("")
    assert "cannot be written" in _refused(capsys, str(tmp_path / "run.yaml"), f"saving.folder={tmp_path / 'file'}")
