"""The gate on selections: of the baseline, and of a kernel with libm's erf."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cuda_cubins
import pytest
import selections


@pytest.fixture(scope="module")
def baseline() -> dict[str, dict[str, Any]]:
    kernels: dict[str, dict[str, Any]] = json.loads(cuda_cubins.BASELINE.read_text())["kernels"]
    return kernels


def test_at_most_one_selection_for_an_element(baseline: dict[str, dict[str, Any]]) -> None:
    assert selections.too_many(baseline) == {}


def test_the_table_allows_no_more_than_twice_of_what_there_is(baseline: dict[str, dict[str, Any]]) -> None:
    """On the architecture that has most, in the instantiation that has most."""
    for name in selections.KERNELS:
        kernels = {k: v["opcodes"].get("FSEL", 0) for k, v in baseline.items() if re.split("[</]", k)[0] == name}
        assert max(selections.most(key) for key in kernels) <= 2 * max(kernels.values()), name


def test_libm_s_erf_is_too_many(compiler: None, baseline: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    sources = tmp_path / "cuda"
    shutil.copytree(cuda_cubins.SOURCES[0].parent, sources)
    gelu, ours = sources / "gelu.cuh", "x[i] = gelu<Form>(x[i]);"
    assert gelu.read_text().count(ours) == 1
    gelu.write_text(gelu.read_text().replace(ours, "x[i] *= 0.5f + 0.5f * erff(0.7071067811865476f * x[i]);"))
    kernels = cuda_cubins.compile_one((sources / "pointwise_forward.cu", "90a"))
    wrong = {key for key in kernels if key.startswith("product_kernel")}
    assert wrong and set(selections.too_many(kernels)) == wrong
    assert selections.too_many({key: baseline[key] for key in wrong}) == {}
