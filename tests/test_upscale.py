"""Running a network on tensors, images and folders, mostly with stand-ins whose result is known exactly."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_helpers import Local, Nearest, picture

from fastsr import upscale
from fastsr.errors import ImageError, InputError
from fastsr.imageio import Image, read_image, write_image
from fastsr.imresize import imresize
from fastsr.upscale import upscale_image, upscale_path, upscale_tensor


def enlarged(pixels: np.ndarray, scale: int = 2) -> np.ndarray:
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Hungry(Nearest):
    """Runs out of memory on more than `limit` pixels, as the error `failure` says it."""

    def __init__(self, limit: int, failure: Exception) -> None:
        super().__init__()
        self.limit, self.failure = limit, failure

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = super().forward(x)
        if x.shape[-2] * x.shape[-1] > self.limit:
            raise self.failure
        return result


# tensors


@pytest.mark.parametrize("shape", [(1, 3, 40, 56), (2, 3, 33, 17), (1, 3, 100, 9)], ids=str)
@pytest.mark.parametrize("tile", [1, 7, 16, 32, 1000])
@pytest.mark.parametrize("scale", [2, 3])
def test_tiles_equal_the_whole_where_the_network_is_local(shape, tile, scale):
    net, x = Local(scale), random(*shape)
    with torch.no_grad():
        whole = net(x)
    result = upscale_tensor(net, x, tile=tile, tile_pad=2)
    assert result.shape == whole.shape
    torch.testing.assert_close(result, whole, rtol=0, atol=1e-14)


def test_too_little_padding_shows_at_the_seams():
    net, x = Local(), random(1, 3, 60, 20)
    with torch.no_grad():
        difference = (upscale_tensor(net, x, tile=20, tile_pad=1) - net(x)).abs()
    wrong = difference.amax((0, 1, 3)) > 1e-9
    # the outermost rows of the middle tile; tiles at a border are shifted inward and see enough
    assert wrong.nonzero().flatten().tolist() == [40, 41, 78, 79]


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 300), tile=st.integers(1, 330), pad=st.integers(0, 40), least=st.integers(1, 60))
def test_windows_cover_an_axis_once_with_full_padding(size, tile, pad, least):
    least = min(least, size)
    windows = upscale._windows(size, tile, pad, least)
    assert [p for w in windows for p in range(w.start, w.stop)] == list(range(size))
    assert len({w.seen.stop - w.seen.start for w in windows}) == 1
    for w in windows:
        assert 0 <= w.seen.start <= max(w.start - pad, 0) and min(w.stop + pad, size) <= w.seen.stop <= size
        assert w.stop - w.start <= tile
        assert w.seen.stop - w.seen.start >= least


def test_tiles_never_fall_below_the_smallest_input():
    net = Nearest(min_size=15)
    upscale_tensor(net, random(1, 3, 50, 61), tile=4, tile_pad=1)
    assert set(net.sizes) == {(15, 15)}


def test_self_ensemble_averages_the_eight_views():
    class Ramp(Nearest):
        """Adds its column number, so every view is told from the others."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y + torch.arange(y.shape[-1], dtype=y.dtype)

    net, x = Ramp().double(), random(1, 3, 6, 6)
    result = upscale_tensor(net, x, self_ensemble=True)
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    ramps = (columns + (11 - columns) + rows + (11 - rows)) / 4  # each of the four directions comes twice
    expected = Nearest().double()(x) + ramps
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_self_ensemble_of_an_equivariant_network_changes_nothing():
    net, x = Nearest(), random(2, 3, 8, 13).float()
    result = upscale_tensor(net, x, self_ensemble=True, tile=6)
    torch.testing.assert_close(result, net(x), rtol=0, atol=1e-6)
    assert len(net.sizes) > 8


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("tile", [0, 5])
def test_input_takes_the_networks_dtype(dtype, wide, tile):
    x = random(1, 3, 9, 9).float()
    result = upscale_tensor(Nearest().to(dtype), x, tile=tile)  # the stand-in asserts its own dtype
    assert result.dtype == wide
    torch.testing.assert_close(result, Nearest()(x.to(dtype).float()).to(wide), rtol=0, atol=0)


def test_strided_input():
    x = random(1, 3, 20, 30).float()[..., ::2, 3:-4].transpose(-1, -2)
    torch.testing.assert_close(upscale_tensor(Nearest(), x, tile=8), Nearest()(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("Cannot allocate memory"),
        MemoryError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("ensemble", [False, True])
def test_memory_shortage_is_answered_with_tiles(failure, ensemble, caplog):
    net, x = Hungry(64 * 64, failure), random(1, 3, 200, 150).float()
    with caplog.at_level(logging.WARNING, "fastsr"):
        result = upscale_tensor(net, x, tile_pad=4, self_ensemble=ensemble)
    torch.testing.assert_close(result, Nearest()(x), rtol=0, atol=1e-6)
    assert len(caplog.records) == 1 and "tiles of 50" in caplog.text  # 200 -> 100 -> 50


def test_memory_shortage_ends_at_a_limit():
    net = Hungry(10, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ImageError, match="even in tiles of 32"):
        upscale_tensor(net, random(1, 3, 100, 100).float())
    assert net.sizes == [(100, 100), (82, 82), (57, 57)]  # whole; 50 and then 25 of their own, with padding


def test_memory_shortage_without_retry():
    net = Hungry(10, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ImageError, match="does not fit in memory"):
        upscale_tensor(net, random(1, 3, 100, 100).float(), retry=False)
    assert net.sizes == [(100, 100)]


def test_other_errors_are_not_taken_for_a_memory_shortage():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        upscale_tensor(Hungry(10, RuntimeError("mat1 and mat2 shapes")), random(1, 3, 100, 100).float())


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 8, 8), {}, "N, 3, H, W"),
        ((1, 1, 8, 8), {}, "N, 3, H, W"),
        ((1, 3, 3, 8), {}, "3x8.*at least 4x4.*pad"),
        ((1, 3, 8, 8), {"tile": -1}, "tile"),
        ((1, 3, 8, 8), {"tile_pad": -1}, "tile_pad"),
        ((1, 3, 8, 8), {"tile": 1.5}, "whole pixels, 0 or more, got 1.5 and 16"),
        ((1, 3, 8, 8), {"tile_pad": "4"}, "whole pixels, 0 or more, got 0 and '4'"),
    ],
)
def test_wrong_tensors_and_options(shape, options, message):
    with pytest.raises(InputError, match=message):
        upscale_tensor(Nearest(), random(*shape).float(), **options)


def test_something_else_than_a_tensor():
    with pytest.raises(InputError, match=r"takes a tensor \[N, 3, H, W\], got a str"):
        upscale_tensor(Nearest(), "q")


def test_integers_are_refused():
    with pytest.raises(InputError, match="uint8"):
        upscale_tensor(Nearest(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


# images


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("input_range", [1.0, 255.0])
def test_image_values_pass_through_unchanged(dtype, input_range):
    rgb = picture(9, 14, dtype=dtype)
    result = upscale_image(Nearest(3, input_range), Image(rgb, icc=b"profile"))
    assert result.rgb.dtype == dtype and result.alpha is None and result.icc == b"profile"
    np.testing.assert_array_equal(result.rgb, enlarged(rgb, 3))


@pytest.mark.parametrize("input_range", [1.0, 255.0])
def test_network_sees_its_own_range(input_range):
    class Watch(Nearest):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.min() == 0 and x.max() == self.input_range
            return super().forward(x)

    upscale_image(Watch(input_range=input_range), Image(picture(8, 8)))


def test_output_is_clamped_and_rounded():
    rgb = np.tile(np.array([0, 1, 100, 101, 200, 255], np.uint8)[None, :, None], (4, 1, 3))
    net = Nearest()
    net.gain.fill_(1.5)
    np.testing.assert_array_equal(upscale_image(net, Image(rgb)).rgb[0, ::2, 0], [0, 2, 150, 152, 255, 255])
    net.gain.fill_(-1)
    assert not upscale_image(net, Image(rgb)).rgb.any()


def test_grey_is_the_mean_of_three_channels():
    class Tint(Nearest):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])
            return super().forward(x) * torch.tensor([0.5, 1.0, 1.2]).view(3, 1, 1)

    rgb = np.repeat(np.arange(0, 200, 2, dtype=np.uint8).reshape(10, 10, 1), 3, axis=2)
    result = upscale_image(Tint(), Image(rgb, grey=True))
    assert result.grey
    np.testing.assert_array_equal(result.rgb, enlarged(np.rint(rgb * 0.9).astype(np.uint8)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_enlarged_by_bicubic(dtype):
    alpha = picture(8, 10, dtype=dtype, seed=3)[..., 0]
    result = upscale_image(Nearest(), Image(picture(8, 10, dtype=dtype), alpha))
    np.testing.assert_array_equal(result.alpha, imresize(alpha, scale=2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error(value):
    net = Nearest().half()
    net.gain.fill_(value)
    with pytest.raises(ImageError, match="float16"):
        upscale_image(net, Image(picture(8, 8)))


# files


@pytest.fixture
def tree(tmp_path):
    source = tmp_path / "in"
    (source / "deep" / "er").mkdir(parents=True)
    for name in ("a.png", "deep/b.PNG", "deep/er/c.tif"):
        write_image(source / name, Image(picture(6, 8, seed=len(name))))
    (source / "notes.txt").write_text("not an image")
    return source


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_tree_becomes_the_same_tree(tree, tmp_path):
    report = upscale_path(Nearest(), tree, tmp_path / "out")
    assert names(tmp_path / "out") == ["a_x2.png", "deep/b_x2.PNG", "deep/er/c_x2.tif"]
    assert len(report.written) == report.total == 3 and not report.failed and not report.skipped
    for name, output in (("a.png", "a_x2.png"), ("deep/er/c.tif", "deep/er/c_x2.tif")):
        expected = enlarged(read_image(tree / name).rgb)
        np.testing.assert_array_equal(read_image(tmp_path / "out" / output).rgb, expected)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "a_x3.png"),
        ({"suffix": "big"}, "a_big.png"),
        ({"suffix": ""}, "a.png"),
        ({"ext": "webp"}, "a_x3.webp"),
        ({"suffix": "", "ext": ".jpg"}, "a.jpg"),
    ],
)
def test_names_of_outputs(tmp_path, options, name):
    write_image(tmp_path / "a.png", Image(picture(6, 8)))
    report = upscale_path(Nearest(3), tmp_path / "a.png", tmp_path / "out", **options)
    assert report.written == [tmp_path / "out" / name]
    assert names(tmp_path / "out") == [name]


def test_a_single_file_to_a_file(tmp_path):
    write_image(tmp_path / "a.png", Image(picture(6, 8)))
    report = upscale_path(Nearest(), tmp_path / "a.png", tmp_path / "new" / "b.tif", suffix="unused")
    assert report.written == [tmp_path / "new" / "b.tif"]
    assert read_image(tmp_path / "new" / "b.tif").size == (12, 16)


def test_existing_outputs_are_skipped_or_overwritten(tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a_x2.png").write_bytes(b"mine")
    report = upscale_path(Nearest(), tree, out)
    assert report.skipped == [out / "a_x2.png"] and len(report.written) == 2
    assert (out / "a_x2.png").read_bytes() == b"mine"
    report = upscale_path(Nearest(), tree, out, overwrite=True)
    assert len(report.written) == 3
    assert read_image(out / "a_x2.png").size == (12, 16)


def test_one_bad_image_does_not_stop_the_others(tree, tmp_path):
    (tree / "a1.png").write_bytes((tree / "a.png").read_bytes()[:60])
    write_image(tree / "deep" / "a2.png", Image(picture(3, 30)))
    report = upscale_path(Nearest(), tree, tmp_path / "out")
    assert len(report.written) == 3 and report.total == 5
    assert set(report.failed) == {tree / "a1.png", tree / "deep" / "a2.png"}
    assert "damaged" in report.failed[tree / "a1.png"]
    assert "3x30" in report.failed[tree / "deep" / "a2.png"]
    assert len(names(tmp_path / "out")) == 3


def test_failure_of_memory_is_one_images_failure(tree, tmp_path):
    report = upscale_path(Hungry(1, MemoryError()), tree, tmp_path / "out")
    assert len(report.failed) == 3 and all("memory" in reason for reason in report.failed.values())
    assert not (tmp_path / "out").exists()


def test_inputs_with_one_output_fail_and_the_rest_is_written(tree, tmp_path):
    write_image(tree / "a.bmp", Image(picture(5, 5)))
    report = upscale_path(Nearest(), tree, tmp_path / "out", ext="png")
    assert set(report.failed) == {tree / "a.png", tree / "a.bmp"}
    assert names(tmp_path / "out") == ["deep/b_x2.png", "deep/er/c_x2.png"]


def test_outputs_inside_the_input_folder_are_not_inputs(tree):
    for _ in range(2):
        report = upscale_path(Nearest(), tree, tree / "out", overwrite=True)
        assert report.total == 3
    assert names(tree / "out") == ["a_x2.png", "deep/b_x2.PNG", "deep/er/c_x2.tif"]


def test_the_input_folder_itself_is_refused(tree):
    for target in (tree, tree / "deep" / ".."):
        with pytest.raises(InputError, match="input folder itself"):
            upscale_path(Nearest(), tree, target)
    assert len(names(tree)) == 4


def test_an_input_is_never_overwritten(tmp_path):
    write_image(tmp_path / "a.png", Image(picture(6, 8)))
    for target in (tmp_path, tmp_path / "a.png"):
        report = upscale_path(Nearest(), tmp_path / "a.png", target, suffix="", overwrite=True)
        assert "itself an input" in report.failed[tmp_path / "a.png"]
    assert read_image(tmp_path / "a.png").size == (6, 8)


def test_half_written_files_never_appear(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "full")))
    report = upscale_path(Nearest(), tree, tmp_path / "out")
    assert len(report.failed) == 3 and names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ("nothing", "out", {}, "neither a file nor a folder"),
        ("empty", "out", {}, "holds no images"),
        ("in", "in/a.png", {}, "is a file"),
        ("in", "out", {"ext": "gif"}, "gif"),
        ("in", "out", {"suffix": "../x"}, "suffix"),
        ("in", "out", {"tile": -4}, "tile"),
        ("in/a.png", "out.gif", {}, "must end in"),
        ("in/notes.txt", "out", {}, "must end in"),
    ],
)
def test_wrong_paths_and_options(tree, tmp_path, source, target, options, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        upscale_path(Nearest(), tmp_path / source, tmp_path / target, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("source", "target"), [("", "out"), ("in", "")])
def test_empty_names_are_not_the_current_folder(tree, tmp_path, monkeypatch, source, target):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is an empty name"):
        upscale_path(Nearest(), source, target)
    assert not (tmp_path / "out").exists()


def test_a_real_network_on_a_picture():
    from fastsr import create_model

    torch.manual_seed(0)
    net = create_model("mlrn", scale=2, num_feat=8, num_block=1).eval()
    rgb = picture(net.min_size, net.min_size + 5)
    x = torch.from_numpy(rgb.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = (net(x)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    result = upscale_image(net, Image(rgb)).rgb
    assert np.abs(result - expected).max() <= 1  # a value on the edge between two integers may fall either way
    with pytest.raises(InputError, match=str(net.min_size)):
        upscale_image(net, Image(rgb[1:]))
