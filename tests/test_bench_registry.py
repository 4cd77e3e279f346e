"""The registry of benchmarks: whole, consistent, readable without PyYAML, with errors that help."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest

from fastsr._dispatch import OPERATORS
from fastsr.bench import registry as module
from fastsr.bench.cases import BUILDERS, make_case
from fastsr.bench.registry import DTYPES, build, folder, load_registry, nearest, parse_size, read_raw
from fastsr.errors import InputError


def test_the_json_copy_is_the_yaml() -> None:
    """After a change of the YAML: python -m fastsr.bench.registry."""
    pytest.importorskip("yaml")
    assert read_raw(folder() / "registry.json") == read_raw(folder() / "registry.yaml")


def test_every_operator_is_measured() -> None:
    registry = load_registry()
    assert {entry.operator for entry in registry.operators.values()} == set(OPERATORS)
    assert set(registry.operators) == set(BUILDERS)


def test_on_a_gpu_operators_are_measured_in_every_precision() -> None:
    """Their order (`fastsr tune --order`) knows each by itself."""
    (grid,) = load_registry().grids("ops", "cuda")
    assert set(grid.dtypes) == set(DTYPES) and set(grid.directions) == {"forward", "backward"}


@pytest.mark.parametrize("name", BUILDERS)
def test_cases_run(name: str) -> None:
    case = make_case(load_registry(), "ops", name, "2x17x16", "fp32", "channels_last", "forward")
    maps = case.maps()
    assert [tuple(x.shape) for x in maps] == [(2, c, 16, 17) for c in load_registry().operators[name].inputs]
    assert case.build()(*maps) is not None
    assert case.id == f"ops/{name}/2x17x16/fp32/channels_last/forward"


def test_builds_are_the_same_each_time_and_leave_the_random_state() -> None:
    import torch

    case = make_case(load_registry(), "models", "mlrn", "16x16", "fp32", "channels_last", "forward")
    before = torch.get_rng_state()
    a, b = case.build().state_dict(), case.build().state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("text", "size"), [("640x360", (1, 360, 640)), ("64x48x47", (64, 47, 48))])
def test_sizes(text: str, size: tuple[int, int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["640", "640x", "0x3", "axb", "1x2x3x4", "-3x4"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(InputError, match="WIDTHxHEIGHT"):
        parse_size(text)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no operator is called 'alkstage'; did you mean 'alk_stage'\?"):
        nearest("operator", ["alkstage"], BUILDERS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw["peers"]["eager"].update(layuot="contiguous"), "layuot"),
        (lambda raw: raw["peers"]["eager"].update(layout="rows"), "no layout is called 'rows'"),
        (lambda raw: raw["groups"]["ops"]["cpu"][0].update(peers=["eagre"]), "did you mean 'eager'"),
        (lambda raw: raw["groups"]["ops"]["cpu"][0].pop("sizes"), "sizes"),
        (lambda raw: raw.pop("tolerances"), "tolerances"),
    ],
)
def test_a_wrong_registry_says_what_is_wrong(tmp_path, change, said) -> None:
    raw = copy.deepcopy(read_raw(folder() / "registry.json"))
    build(raw)
    change(raw)
    path = tmp_path / "registry.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=said):
        load_registry(path)


def test_reads_without_pyyaml() -> None:
    """A GPU machine may have nothing but torch's own requirements."""
    code = "import sys; sys.modules['yaml'] = sys.modules['msgspec'] = sys.modules['cv2'] = None\n"
    code += "from fastsr.bench import registry, run\nprint(len(registry.load_registry().operators))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(len(module.load_registry().operators)), done.stderr
