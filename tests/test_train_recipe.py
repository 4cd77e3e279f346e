"""Recipes: strict keys, overrides, what ships, and the schedules."""

from __future__ import annotations

import math

import pytest
from train_helpers import tiny

from fastsr.errors import InputError
from fastsr.models import create_model
from fastsr.train.recipe import Schedule, describe_differences, load_recipe, shipped_recipes
from fastsr.train.schedule import learning_rate


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_load_and_name_networks(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    net = create_model(recipe.model.name, scale=recipe.model.scale, **recipe.model.settings)
    assert net.scale == recipe.model.scale and recipe.data.patch >= net.min_size
    assert f"x{net.scale}" in name


_PAPERS = {
    "alkdnet": (1e-3, (0.9, 0.999), "cosine", {2: 48, 3: 48, 4: 48}),
    "bsrn": (1e-3, (0.9, 0.999), "cosine", {2: 48, 3: 48, 4: 48}),
    "mlrn": (5e-4, (0.9, 0.99), "step", {2: 96, 3: 64, 4: 64}),
    "mlrn_ntire": (5e-4, (0.9, 0.99), "step", {4: 64}),
    "rlfn": (5e-4, (0.9, 0.999), "step", {2: 128, 3: 85, 4: 64}),
    "rlfn_ntire": (5e-4, (0.9, 0.999), "step", {4: 64}),
}


@pytest.mark.parametrize("name", _PAPERS)
def test_the_papers_settings(name):
    """Learning rate, betas, schedule, LR patch; batch 64, L1, no averaging, flips and rotations for all."""
    rate, betas, schedule, patches = _PAPERS[name]
    for scale, patch in patches.items():
        recipe = load_recipe(f"{name}_x{scale}")
        optimizer = recipe.optimizer
        assert (recipe.model.name, recipe.model.scale, recipe.data.patch) == (name, scale, patch)
        assert (optimizer.name, optimizer.lr, optimizer.betas, optimizer.batch) == ("adam", rate, betas, 64)
        assert (recipe.loss, recipe.ema, recipe.data.flip, recipe.data.rotate) == ("l1", None, True, True)
        assert (recipe.schedule.name, recipe.schedule.warmup) == (schedule, 0)
        if schedule == "cosine":
            assert (recipe.schedule.steps, recipe.schedule.min_lr) == (1_000_000, 1e-7)
        else:
            assert recipe.schedule.steps == (800_000 if name == "mlrn_ntire" else 1_000_000)
            assert learning_rate(recipe.schedule, rate, 400_000) == pytest.approx(rate / 4)


def test_warm_starts_begin_from_their_first_stage():
    warm = [name for name in shipped_recipes() if name.endswith("_warm")]
    assert {"mlrn_x2_warm", "mlrn_x3_warm", "mlrn_x4_warm", "mlrn_ntire_x4_warm", "mlrn_x2_cpu_warm"} == set(warm)
    for name in warm:
        start = load_recipe(name).model.warm_start
        assert start is not None and start.split("/")[1] == name.removesuffix("_warm")


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimiser.lr=1", "unknown key optimiser; did you mean optimizer"),
        ("data.pach=3", "unknown key data.pach; did you mean data.patch"),
        ("data.patch=big", "data.patch: Expected `int`, got `str`"),
        ("data.patch=0", "data.patch"),
        ("compute.precision=int8", "compute.precision: Invalid enum value 'int8'; accepted are fp32, tf32, fp16, bf16"),
        ("validation.hr.a=3", "validation"),
        ("schedule.name=step", "schedule.every is missing"),
        ("schedule.warmup=6", "it must be shorter"),
        ("validation.lr.a=b", "validation.lr names a"),
        ("name=a/b", "one plain name"),
        ("patch", "overrides nothing"),
        ("data.patch.x=1", "not a section"),
        ("data=[1", "not YAML"),
        ("model.settings.scale=3", "model.settings holds scale"),
        ("model.settings.pretrained=true", "model.settings holds pretrained"),
    ],
)
def test_bad_recipes(tmp_path, override, message):
    overrides = ["data.patch=16", override] if override.startswith("data.patch.x") else [override]
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        tiny(tmp_path, *overrides)


@pytest.mark.parametrize("text", ["name: a\nname: b\n", "data: {patch: 16,\n  patch: 48}\n"])
def test_a_key_that_stands_twice(tmp_path, text):
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(InputError, match=r"(name|patch) stands twice in one section, again in line 2"):
        load_recipe(str(tmp_path / "twice.yaml"))


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'mlrn_x2_cpu'"):
        load_recipe("mlrn_x2_cpuu")


def test_exponents_without_a_point_are_numbers(tmp_path):
    assert tiny(tmp_path, "optimizer.lr=1e-4").optimizer.lr == 1e-4  # YAML 1.1 reads 1e-4 as text


def test_cosine():
    schedule = Schedule(steps=110, warmup=10, min_lr=0.1)
    rates = [learning_rate(schedule, 1.0, step) for step in range(110)]
    assert rates[0] == pytest.approx(1 / 11) and rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.101


def test_minutes_take_over_when_they_are_further_on():
    schedule = Schedule(steps=100, min_lr=0.0, max_minutes=10.0)
    assert learning_rate(schedule, 1.0, 1, 5.0) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)
    assert learning_rate(schedule, 1.0, 50, 1.0) == pytest.approx(0.5)


def test_differences_leave_out_what_cannot_change_weights(tmp_path):
    old = tiny(tmp_path)
    new = tiny(tmp_path, "optimizer.lr=0.5", "saving.keep=9", "data.workers=3", "log_every=7", "data.max_bad_images=99")
    assert describe_differences(old.as_dict(), new.as_dict()) == ["optimizer.lr: 0.001 -> 0.5"]
