"""The command line: results on stdout, one-line errors on stderr, exit status."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from image_helpers import Nearest, picture, shared

import fastsr
from fastsr import cli
from fastsr.evaluate import EvalResult, ImageScore
from fastsr.imageio import Image, read_image, write_image


@pytest.fixture(autouse=True)
def quiet_logging():
    """Leaves the root logger as it was: `main` sets up logging for a process of its own."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint path that loads as the stand-in network, and what `load` was asked for."""
    calls = []

    def load(path, *, device="cpu", dtype=torch.float32):
        calls.append((path, torch.device(device), dtype, fastsr.current_backend()))
        return Nearest().to(dtype)

    monkeypatch.setattr(fastsr, "load", load)
    return tmp_path / "net.pth", calls


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        write_image(folder / f"{name}.png", Image(picture(16, 20, seed=ord(name))))
    return folder


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_upscale_a_folder(capsys, checkpoint, photos, tmp_path):
    out_dir = tmp_path / "out"
    status, out, _ = run(capsys, "upscale", "-i", photos, "-o", out_dir, "--model", checkpoint[0])
    assert status == 0
    assert out == "2 written, 0 skipped, 0 failed\n"
    assert read_image(out_dir / "a_x2.png").size == (32, 40)
    status, out, _ = run(capsys, "upscale", "-i", photos, "-o", out_dir, "--model", checkpoint[0])
    assert (status, out) == (0, "0 written, 2 skipped, 0 failed\n")


def test_upscale_passes_its_options_on(capsys, checkpoint, photos, tmp_path, monkeypatch):
    seen = {}

    def upscale_path(net, source, target, **options):
        seen.update(options, source=source, target=target)
        return fastsr.upscale.Report()

    monkeypatch.setattr("fastsr.upscale.upscale_path", upscale_path)
    options = "-s 2 --suffix big --ext jpg -t 64 --tile_pad 8 --self-ensemble --overwrite --dtype bf16 --backend cpu"
    arguments = ["-i", photos, "-o", tmp_path / "o", "--model", checkpoint[0], "--device", "cpu", *options.split()]
    assert run(capsys, "upscale", *arguments)[0] == 0
    assert seen == {
        "source": photos,
        "target": tmp_path / "o",
        "suffix": "big",
        "ext": "jpg",
        "overwrite": True,
        "tile": 64,
        "tile_pad": 8,
        "self_ensemble": True,
    }
    assert checkpoint[1] == [(checkpoint[0], torch.device("cpu"), torch.bfloat16, "cpu")]
    assert fastsr.current_backend() == "auto"


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [([], torch.float32), (["--fp32"], torch.float32), (["--dtype", "fp16"], torch.float16)],
)
def test_precision(capsys, checkpoint, photos, tmp_path, flags, dtype):
    assert run(capsys, "upscale", "-i", photos, "-o", tmp_path / "o", "--model", checkpoint[0], *flags)[0] == 0
    assert checkpoint[1][0][2] == dtype


def test_failures_are_listed_after_the_rest_is_done(capsys, checkpoint, photos, tmp_path):
    (photos / "a2.png").write_bytes(b"not an image")
    write_image(photos / "a3.png", Image(picture(2, 20)))
    status, out, err = run(capsys, "upscale", "-i", photos, "-o", tmp_path / "o", "--model", checkpoint[0])
    assert status == 2
    assert out == "2 written, 0 skipped, 2 failed\n"
    lines = err.strip().splitlines()
    assert lines[-1] == "fastsr: error: 2 of 4 images failed"
    assert lines[-2].startswith(f"fastsr: {photos / 'a3.png'}: the image is 2x20")
    assert lines[-3].startswith(f"fastsr: {photos / 'a2.png'} is damaged")


def test_another_scale_is_refused(capsys, checkpoint, photos, tmp_path):
    arguments = ("upscale", "-i", photos, "-o", tmp_path / "o", "--model", checkpoint[0])
    status, out, err = run(capsys, *arguments, "-s", 4)
    assert (status, out) == (2, "")
    assert err.startswith("fastsr: error: ") and "by 2, not by 4" in err
    assert not (tmp_path / "o").exists()


def assert_one_line_error(status, err):
    assert status == 2
    assert err.startswith("fastsr: error: ") and err.count("\n") == 1 and "Traceback" not in err


def test_errors_are_one_line(capsys, photos, tmp_path):
    missing = tmp_path / "none.pth"
    (tmp_path / "bad.pth").write_bytes(b"garbage " * 9)
    common = ("upscale", "-i", photos, "-o", tmp_path / "o", "--model")
    for arguments in (
        (*common, missing),
        (*common, tmp_path / "bad.pth"),
        ("eval", "--hr", photos, "--model", missing),
        ("demo", "--weights", missing, "--output", tmp_path / "o"),
    ):
        status, out, err = run(capsys, *arguments)
        assert_one_line_error(status, err)
        assert out == "" and not (tmp_path / "o").exists()


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:x", "meta"])
def test_unknown_devices(capsys, checkpoint, photos, tmp_path, device):
    arguments = ("upscale", "-i", photos, "-o", tmp_path / "o", "--model", checkpoint[0], "--device", device)
    status, _, err = run(capsys, *arguments)
    assert_one_line_error(status, err)
    assert repr(device) in err


def test_cuda_where_there_is_none(capsys, checkpoint, photos, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    arguments = ("eval", "--hr", photos, "--model", checkpoint[0], "--device", "cuda")
    status, _, err = run(capsys, *arguments)
    assert_one_line_error(status, err)
    assert "'cuda'" in err and "try cpu" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["upscale"],
        ["upscale", "-i", "a", "-o", "b"],
        ["upscale", "-i", "a", "-o", "b", "--model", "m", "--dtype", "fp64"],
        ["upscale", "-i", "a", "-o", "b", "--model", "m", "--dtype", "fp16", "--fp32"],
        ["upscale", "-i", "a", "-o", "b", "--model", "m", "--backend", "metal"],
        ["upscale", "-i", "a", "-o", "b", "--model", "m", "-t", "many"],
        ["upscale", "-i", "", "-o", "b", "--model", "m"],
        ["upscale", "-i", "a", "-o", "", "--model", "m"],
        ["eval", "--hr", "", "--model", "m"],
        ["eval", "--hr", "a"],
    ],
)
def test_wrong_usage_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: fastsr" in capsys.readouterr().err


def test_backend_choices_are_those_of_the_library():
    assert set(cli._BACKENDS) == {"auto", *fastsr.BACKENDS}


def test_interruption(capsys, checkpoint, photos, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastsr.upscale.upscale_image", interrupted)
    status, out, err = run(capsys, "upscale", "-i", photos, "-o", tmp_path / "o", "--model", checkpoint[0])
    assert (status, out, err) == (130, "", "fastsr: interrupted\n")


def test_a_bug_keeps_its_traceback(checkpoint, photos, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("fastsr.upscale.upscale_image", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["upscale", "-i", str(photos), "-o", str(tmp_path / "o"), "--model", str(checkpoint[0])])


def test_eval_prints_a_table(capsys, checkpoint, monkeypatch):
    scores = (ImageScore("baby", 38.9333, 0.96), ImageScore("a longer name", float("inf"), 1.0))
    monkeypatch.setattr("fastsr.evaluate.evaluate", lambda *_, **__: EvalResult(2, scores))
    status, out, _ = run(capsys, "eval", "--hr", "x", "--model", checkpoint[0])
    assert status == 0
    assert out.splitlines() == [
        "image          PSNR-Y (dB)  SSIM-Y",
        "baby                38.933  0.9600",
        "a longer name          inf  1.0000",
        "mean                   inf  0.9800",
    ]


def test_eval_json(capsys, checkpoint, photos, tmp_path):
    arguments = ("eval", "--hr", photos, "--model", checkpoint[0], "--json")
    status, out, _ = run(capsys, *arguments, "-")
    scores = json.loads(out)
    assert status == 0 and [image["name"] for image in scores["images"]] == ["a", "b"]
    status, out, _ = run(capsys, *arguments, tmp_path / "scores.json")
    assert status == 0 and out.startswith("image")
    assert json.loads((tmp_path / "scores.json").read_text()) == scores


def test_eval_json_that_cannot_be_written_is_said_before_the_work(capsys, checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("fastsr.evaluate.evaluate", lambda *_, **__: pytest.fail("images were scored"))
    arguments = ("eval", "--hr", photos, "--model", checkpoint[0], "--json")
    for target in (tmp_path / "none" / "scores.json", tmp_path):
        status, _, err = run(capsys, *arguments, target)
        assert_one_line_error(status, err)
        assert f"{target} cannot be written" in err
    assert not (tmp_path / "none").exists()


def test_eval_json_on_a_disk_that_fills_up(capsys, checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "full")))
    status, out, err = run(capsys, "eval", "--hr", photos, "--model", checkpoint[0], "--json", tmp_path / "a.json")
    assert_one_line_error(status, err)
    assert out.startswith("image")


def test_models(capsys):
    status, out, _ = run(capsys, "models")
    rows = [line.split()[:3] for line in out.splitlines()]
    assert status == 0 and rows[0] == ["name", "scale", "parameters"]
    assert ["alkdnet", "x2", "372,716"] in rows and ["mlrn", "x4", "506,666"] in rows
    assert {row[0] for row in rows[1:]} == set(fastsr.list_models())


def test_info(capsys):
    status, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["torch"] == torch.__version__
    status, out, _ = run(capsys, "info")
    assert status == 0 and f"torch: {torch.__version__}" in out
    for operator in facts["operators"]:
        assert f"  {operator}:" in out.splitlines()


def test_python_m_fastsr():
    def start(*arguments):
        return subprocess.run([sys.executable, "-m", "fastsr", *arguments], capture_output=True, text=True, check=False)

    version = start("--version")
    assert (version.returncode, version.stdout) == (0, f"fastsr {fastsr.__version__}\n")
    failed = start("eval", "--model", "none.pth", "--hr", ".")
    assert_one_line_error(failed.returncode, failed.stderr)


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("upscale", "eval", "models", "info", "demo"))


def test_a_published_checkpoint_end_to_end(capsys, tmp_path):
    weights = shared("weights", "rlfn_ntire_x4.pth")
    hr = shared("data", "set5", "woman.png")
    (tmp_path / "hr").mkdir()
    (tmp_path / "hr" / "woman.png").write_bytes(hr.read_bytes())
    status, out, _ = run(capsys, "eval", "--model", weights, "--hr", tmp_path / "hr", "--device", "cpu", "--json", "-")
    assert status == 0
    assert json.loads(out)["psnr"] == pytest.approx(30.66, abs=0.006)
    arguments = ("-i", tmp_path / "hr", "-o", tmp_path / "o", "--model", weights, "--device", "cpu", "-s", 4)
    assert run(capsys, "upscale", *arguments)[0] == 0
    result = read_image(tmp_path / "o" / "woman_x4.png").rgb
    small = read_image(hr).rgb
    means = result.reshape(small.shape[0], 4, small.shape[1], 4, 3).mean((1, 3))
    assert np.abs(means - small).mean() < 3  # the same picture, four times as large
