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
from fastsr.imresize import imresize
from fastsr.train.data import make_loader, open_pairs


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


def test_lmdb(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    hr = photographs(tmp_path / "hr")
    store = tmp_path / "store.lmdb"
    environment = lmdb.open(str(store), map_size=2**24)
    with environment.begin(write=True) as transaction:
        for path in hr.glob("*.png"):
            transaction.put(path.stem.encode(), path.read_bytes())
    environment.close()
    (store / "meta_info.txt").write_text("".join(f"{i}.png (1,1,3) 1\n" for i in range(5)))
    folder, base = _pairs(tiny(tmp_path)), _pairs(tiny(tmp_path, f"data.hr={store}"))
    for number in range(5):
        assert torch.equal(base[number][0], folder[number][0]) and torch.equal(base[number][1], folder[number][1])


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
