"""Training data: reproducible patches, pairs that match, sources of every kind, damaged images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from image_helpers import picture
from train_helpers import photographs, tiny

from fastsr.errors import InputError
from fastsr.imageio import Image, read_image, write_image
from fastsr.imresize import imresize, modcrop
from fastsr.train.data import make_loader, open_pairs
from fastsr.train.sources import LmdbSource


def _pairs(recipe, **options):
    return open_pairs(recipe.data, recipe.model.scale, recipe.seed, **options)


def test_patches_match_and_repeat(tmp_path):
    recipe = tiny(tmp_path)
    data, again = _pairs(recipe), _pairs(recipe)
    assert len(list((tmp_path / "cache" / "x2").glob("*.png"))) == 5
    for number in range(20):
        lr, hr = data[number]
        assert torch.equal(lr, again[number][0]) and torch.equal(hr, again[number][1])
        assert lr.shape == (3, 16, 16) and hr.shape == (3, 32, 32)
        reduced = imresize(hr.permute(1, 2, 0).numpy(), scale=0.5)
        inside = np.s_[:, 3:-3, 3:-3]  # the border of a patch sees other pixels than the patch's mirror
        np.testing.assert_array_equal(reduced.transpose(2, 0, 1)[inside], lr.numpy()[inside])


def test_every_image_comes_once_a_round(tmp_path):
    data = _pairs(tiny(tmp_path))
    read = []
    data.pair = lambda key, pair=data.pair: (read.append(key), pair(key))[1]
    for number in range(10):
        data[number]
    assert sorted(read[:5]) == sorted(read[5:]) == data.keys


@pytest.mark.parametrize("workers, world, parts", [(2, 1, 1), (0, 2, 1), (0, 2, 2)])
def test_workers_processes_and_parts_change_nothing(tmp_path, workers, world, parts):
    recipe = tiny(tmp_path, f"data.workers={workers}")
    data = _pairs(recipe)
    alone = [hr for number in range(4, 12) for hr in (data[number][1],)]
    shares = [
        list(make_loader(data, start=1, stop=3, batch=4, parts=parts, rank=rank, world=world)) for rank in range(world)
    ]
    assert all(len(share) == 2 * parts for share in shares)
    together = [torch.cat([batch[1] for batch in share]) for share in shares]
    for i, hr in enumerate(alone):
        assert torch.equal(together[i % world][i // world], hr)


def test_given_lr_images_and_a_list(tmp_path):
    hr, lr = photographs(tmp_path / "hr"), tmp_path / "lr"
    lr.mkdir()
    for path in hr.glob("*.png"):
        write_image(lr / f"{path.stem}x2.png", Image(imresize(read_image(path).rgb[:, : 46 // 2 * 2], scale=0.5)))
    (tmp_path / "list.txt").write_text("0.png (40,46,3)\n2.png (44,48,3)\n")
    with pytest.raises(InputError, match=r"lr.*needs one of"):  # 49 pixels wide, reduced from 46
        _pairs(tiny(tmp_path, f"data.lr={lr}"))
    write_image(lr / "2x2.png", Image(picture(22, 24)))
    data = _pairs(tiny(tmp_path, f"data.lr={lr}", f"data.meta_info={tmp_path / 'list.txt'}"))
    assert data.keys == ["0", "2"]
    (lr / "0x2.png").unlink()
    with pytest.raises(InputError, match="no LR image for 0"):
        _pairs(tiny(tmp_path, f"data.lr={lr}"))


def _store(folder, images):
    """An LMDB in BasicSR's layout of the files in `images`."""
    lmdb = pytest.importorskip("lmdb")
    paths = sorted(images.iterdir())
    environment = lmdb.open(str(folder), map_size=2**24)
    with environment.begin(write=True) as transaction:
        for path in paths:
            transaction.put(path.stem.encode(), path.read_bytes())
    environment.close()
    (folder / "meta_info.txt").write_text("".join(f"{path.stem}.png (1,1,3) 1\n" for path in paths))
    return folder


def test_lmdb(tmp_path):
    store = _store(tmp_path / "store.lmdb", photographs(tmp_path / "hr"))
    folder, base = _pairs(tiny(tmp_path)), _pairs(tiny(tmp_path, f"data.hr={store}"))
    for number in range(5):
        assert torch.equal(base[number][0], folder[number][0]) and torch.equal(base[number][1], folder[number][1])


def test_lmdbs_of_both_sizes(tmp_path):
    hr, lr = photographs(tmp_path / "hr"), tmp_path / "lr"
    lr.mkdir()
    for path in hr.iterdir():
        write_image(lr / path.name, Image(imresize(modcrop(read_image(path).rgb, 2), scale=0.5)))
    places = (f"data.hr={_store(tmp_path / 'a', hr)}", f"data.lr={_store(tmp_path / 'b', lr)}")
    folder, base = _pairs(tiny(tmp_path)), _pairs(tiny(tmp_path, *places))
    for number in range(5):
        assert torch.equal(base[number][0], folder[number][0]) and torch.equal(base[number][1], folder[number][1])


def test_an_image_of_an_lmdb_that_is_too_small_shows_before_any_is_decoded(tmp_path, monkeypatch):
    store = _store(tmp_path / "store.lmdb", photographs(tmp_path / "hr"))
    monkeypatch.setattr(LmdbSource, "read", lambda *_: pytest.fail("an image was decoded"))
    with pytest.raises(InputError, match=r"store.lmdb\[0\] is 46x40; .* at least 48x48"):
        _pairs(tiny(tmp_path, f"data.hr={store}", "data.patch=24"))


def test_damaged_lmdbs(tmp_path):
    store = _store(tmp_path / "store.lmdb", photographs(tmp_path / "hr"))
    recipe = tiny(tmp_path, f"data.hr={store}", "data.max_bad_images=1")
    with (store / "meta_info.txt").open("a") as file:
        file.write("9.png (1,1,3) 1\n")
    assert _pairs(recipe).bad == {"9"}
    (store / "data.mdb").write_bytes(b"no database")
    with pytest.raises(InputError, match=r"2 training images cannot be read.*store.lmdb\[1\] cannot be read"):
        _pairs(recipe)
    (store / "meta_info.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"no readable meta_info\.txt"):
        _pairs(recipe)


def test_two_images_of_one_name(tmp_path):
    hr = photographs(tmp_path / "hr")
    write_image(hr / "1.jpg", Image(picture(50, 50)))
    with pytest.raises(InputError, match=r"1\.jpg and .*1\.png differ only in their endings"):
        _pairs(tiny(tmp_path))


@pytest.mark.parametrize(
    "flip, rotate, views", [(True, True, 8), (True, False, 4), (False, True, 2), (False, False, 1)]
)
def test_flips_and_rotations(tmp_path, flip, rotate, views):
    """All the views that are asked for come, alike of both sizes, and no others."""
    hr = tmp_path / "hr"
    hr.mkdir()
    write_image(hr / "0.png", Image(picture(32, 32)))  # one patch: only the view is drawn
    data = _pairs(tiny(tmp_path, f"data.flip={flip}", f"data.rotate={rotate}"))
    lr, sharp = (torch.tensor(image.transpose(2, 0, 1)) for image in data.pair("0"))
    found = set()
    for number in range(200):
        small, large = data[number]
        for view in range(8):
            if torch.equal(_view(lr, view), small):
                assert torch.equal(_view(sharp, view), large)
                found.add(view)
                break
        else:
            raise AssertionError("a patch that is no view of its image")
    assert len(found) == views and 0 in found


def _view(image, number):
    """One of the 8 flips and quarter turns of [C, H, W]."""
    image = image.flip(2) if number & 1 else image
    return torch.rot90(image, number >> 1, (1, 2))


def test_another_seed_draws_other_patches(tmp_path):
    one, other = _pairs(tiny(tmp_path)), _pairs(tiny(tmp_path, "seed=1"))
    assert not all(torch.equal(one[number][0], other[number][0]) for number in range(5))


def test_damaged_images_are_skipped_up_to_a_limit(tmp_path, caplog):
    hr = photographs(tmp_path / "hr")
    (hr / "1.png").write_bytes((hr / "1.png").read_bytes()[:200])
    data = _pairs(tiny(tmp_path))
    assert data.bad == {"1"} and "1.png is damaged" in caplog.text
    assert all(data[number][0].shape == (3, 16, 16) for number in range(10))
    with pytest.raises(InputError, match=r"more than data.max_bad_images=0.*1\.png"):
        _pairs(tiny(tmp_path, "data.max_bad_images=0"))


def test_a_damaged_reduction_is_made_again(tmp_path):
    recipe = tiny(tmp_path)
    first = _pairs(recipe)[0][0]
    for path in (tmp_path / "cache" / "x2").iterdir():
        path.write_bytes(b"")
    assert torch.equal(_pairs(recipe)[0][0], first)


def test_the_cache_keeps_to_its_budget(tmp_path, caplog):
    data = _pairs(tiny(tmp_path, "data.cache_mib=0"))
    assert data._cache == {} and cv2.haveImageReader(str(tmp_path / "hr" / "0.png"))
    assert "0 of 5 images fit into data.cache_mib=0" in caplog.text and "set it to 1" in caplog.text
    caplog.clear()
    assert len(_pairs(tiny(tmp_path, "data.cache_mib=1"))._cache) == 5
    assert not caplog.text


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("data.hr=nowhere",), "nowhere is not a folder"),
        (("data.patch=24",), "need at least 48x48"),
        (("data.meta_info=nowhere.txt",), "cannot be read"),
    ],
)
def test_bad_data(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        _pairs(tiny(tmp_path, *overrides))


def test_no_images(tmp_path):
    (tmp_path / "hr").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        _pairs(tiny(tmp_path))
