"""The choice of backend: forced and free, by call, by environment, under export."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import types
from typing import Any

import pytest
import torch
from kernel_checks import float32_precision

import fastsr
from fastsr import _cuda, _device, _dispatch, _native, ops


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def norm_arguments() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(1, 4, 3, 3), torch.ones(4), torch.zeros(4)


def test_context_manager_restores_and_call_stays() -> None:
    assert fastsr.current_backend() == "auto"
    with fastsr.backend("reference"):
        assert fastsr.current_backend() == "reference"
        with fastsr.backend("cpu"):
            assert fastsr.current_backend() == "cpu"
        assert fastsr.current_backend() == "reference"
    assert fastsr.current_backend() == "auto"
    fastsr.backend("reference")
    assert fastsr.current_backend() == "reference"


def test_unknown_backend() -> None:
    with pytest.raises(fastsr.InputError, match=r"the backend is 'cudnn'; accepted are auto, cuda, triton"):
        fastsr.backend("cudnn")
    assert fastsr.current_backend() == "auto"


def test_forced_backend_that_cannot_run_is_an_error() -> None:
    with fastsr.backend("triton"), pytest.raises(fastsr.BackendError, match=r"'triton' cannot run pixel_norm: .+force"):
        ops.pixel_norm(*norm_arguments())


def test_can_run_gives_the_reason() -> None:
    x = torch.randn(1, 4, 3, 3)
    assert fastsr.can_run("pixel_norm", "reference", x) is None
    assert "triton" in str(fastsr.can_run("pixel_norm", "triton", x))
    assert "meta" in str(fastsr.can_run("pixel_norm", "cpu", x.to("meta"))) or not _native.CPU.loaded
    with pytest.raises(fastsr.InputError, match="can_run: x is a int; pass a tensor"):
        fastsr.can_run("pixel_norm", "cpu", 3)  # type: ignore[arg-type]
    with pytest.raises(fastsr.InputError, match="no operator is called 'conv'"):
        fastsr.can_run("conv", "cpu", x)
    with pytest.raises(fastsr.InputError, match="no backend is called 'gpu'"):
        fastsr.can_run("pixel_norm", "gpu", x)


def test_falling_back_is_logged_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_dispatch._kernels["pixel_norm"], "cpu", lambda x: "the test forbids it")
    monkeypatch.setattr(_dispatch, "_logged", set())
    with caplog.at_level(logging.INFO, "fastsr"):
        for _ in range(3):
            ops.pixel_norm(*norm_arguments())
    assert [r.getMessage() for r in caplog.records] == ["pixel_norm runs on the reference path: the test forbids it"]


def test_free_choice_takes_the_kernel(cpu_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _dispatch.select("pixel_norm", torch.empty(1, 4, 3, 3)) == "cpu"
    monkeypatch.setattr(_dispatch, "exporting", lambda: True)
    assert _dispatch.select("pixel_norm", torch.empty(1, 4, 3, 3)) == "reference"


def test_the_gpu_s_two_backends_are_tried_in_the_order_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = torch.empty(1, 4, 3, 3, device="meta")
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda", 0))
    monkeypatch.setitem(_dispatch._kernels, "alk_conv", {"cuda": lambda x: None, "triton": lambda x: None})
    assert _dispatch.select("alk_conv", on_gpu) == "cuda"
    for first, other in (("cuda", "triton"), ("triton", "cuda")):
        monkeypatch.setattr(_dispatch, "FIRST_ON_GPU", (first, "the test says so"))
        monkeypatch.setitem(_dispatch._kernels["alk_conv"], first, lambda x: None)
        assert _dispatch.select("alk_conv", on_gpu) == first
        monkeypatch.setitem(_dispatch._kernels["alk_conv"], first, lambda x: "the test forbids it")
        assert _dispatch.select("alk_conv", on_gpu) == other
        with fastsr.backend(first), pytest.raises(fastsr.BackendError, match="the test forbids it"):
            _dispatch.select("alk_conv", on_gpu)
        with fastsr.backend(other):
            assert _dispatch.select("alk_conv", on_gpu) == other
        monkeypatch.setitem(_dispatch._kernels["alk_conv"], first, lambda x: None)


def test_operators_with_products_of_maps_know_tf32() -> None:
    """All but those of statistics, and the backward of all that do."""
    assert set(_dispatch.OPERATORS) - _cuda._in_tf32 == {"cca_norm", "pixel_norm"}
    assert {f"{op}_backward" for op in _dispatch.OPERATORS} - _cuda._in_tf32 == {
        "cca_norm_backward",
        "pixel_norm_backward",
    }


def test_the_cuda_key_leads_to_the_chosen_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the function under an operator's CUDA key, without a GPU."""
    calls = []
    run = _cuda._choosing("pixel_norm", "pixel_norm", lambda *args: calls.append(("triton", "pixel_norm", args)))
    fake_ops = types.SimpleNamespace(_cuda_pixel_norm=lambda *args: calls.append(("cuda", "pixel_norm", args)))
    monkeypatch.setattr(torch.ops, "fastsr", fake_ops)
    arguments = (torch.empty(1, 8, 2, 2), torch.empty(8), torch.empty(8), 1e-6)
    for name in ("cuda", "triton"):
        monkeypatch.setattr(_cuda, "select_kernel", lambda op, x, extents, name=name: name)
        run(*arguments)
    with fastsr.set_gelu("fast"):
        monkeypatch.setattr(_cuda, "select_kernel", lambda op, x, extents: "cuda")
        run(*arguments)
    assert calls == [
        ("cuda", "pixel_norm", (*arguments, 0)),
        ("triton", "pixel_norm", arguments),
        ("cuda", "pixel_norm", (*arguments, 2)),
    ]


@pytest.mark.parametrize("allowed", (False, True))
def test_tf32_is_an_argument_of_the_call(monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    """Of the operators that know it, forward and backward."""
    calls = []
    names = ("_cuda_pointwise", "_cuda_pointwise_backward", "_cuda_pixel_norm")
    fakes = {name: lambda *args, name=name: calls.append((name, args[1:])) for name in names}
    monkeypatch.setattr(torch.ops, "fastsr", types.SimpleNamespace(**fakes))
    monkeypatch.setattr(_cuda._device, "allows_tf32", lambda x: allowed)
    x = torch.empty(1, 8, 2, 2)
    for name in names:
        _cuda._run(name.removeprefix("_cuda_"), x, (x, torch.empty(8, 8, 1, 1)))
    assert [args[-1] for _, args in calls[:2]] == [allowed, allowed]
    assert [len(args) for _, args in calls] == [3, 3, 2]


def test_tf32_is_allowed_where_pytorch_s_convolutions_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.empty(1)
    with float32_precision("tf32"):
        assert not _device.allows_tf32(x)  # on the CPU
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        assert _device.allows_tf32(x)
        monkeypatch.setattr(torch.version, "hip", "6.4")
        assert not _device.allows_tf32(x)
        monkeypatch.setattr(torch.version, "hip", None)
    with float32_precision("ieee"):
        assert not _device.allows_tf32(x)


def test_environment_forces_the_backend() -> None:
    code = "import fastsr; print(fastsr.current_backend())"
    assert run_python(code, FASTSR_BACKEND="Reference ").stdout.strip() == "reference"
    assert run_python(code, FASTSR_BACKEND="").stdout.strip() == "auto"
    wrong = run_python(
        "import torch, fastsr; fastsr.ops.pixel_norm(torch.ones(1, 2, 3, 3), torch.ones(2), torch.ones(2))",
        FASTSR_BACKEND="cudnn",
    )
    assert "FASTSR_BACKEND is 'cudnn'; accepted are auto, cuda" in wrong.stderr


def test_environment_reaches_the_command_line() -> None:
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    code = "import sys; from fastsr.cli import main; sys.exit(main(['upscale', '-i', 'x', '-o', 'y', '--model', 'z']))"
    done = run_python(code, FASTSR_BACKEND="cudnn")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "fastsr: error: FASTSR_BACKEND is 'cudnn'; accepted are auto, cuda, triton, cpu, reference"
    )


def test_environment_limits_the_instruction_set(cpu_kernels: None) -> None:
    code = "import fastsr, json; i = fastsr.info(); print(json.dumps([i['cpu_isa'], i['cpu_isa_problem']]))"
    assert json.loads(run_python(code, FASTSR_CPU_ISA="portable").stdout) == ["portable", None]
    isa, problem = json.loads(run_python(code, FASTSR_CPU_ISA="sse9").stdout)
    assert isa in ("portable", "avx2", "avx512") and "'sse9'; accepted are auto, portable" in problem


def test_import_touches_no_device_and_compiles_nothing() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import fastsr
assert not torch.cuda.is_initialized()
new = set(sys.modules) - before
assert not any(m.split('.')[0] in ('triton', 'cv2', 'PIL', 'safetensors', 'tqdm') for m in new), sorted(new)
assert 'torch._dynamo' not in new and 'torch.utils.cpp_extension' not in new
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_info_is_plain_data_and_names_every_operator() -> None:
    info = json.loads(json.dumps(fastsr.info()))
    assert set(info["operators"]) == set(_dispatch.OPERATORS)
    for row in info["operators"].values():
        assert row["cpu"]["backend"] in fastsr.BACKENDS
        assert all(row["cpu"]["unavailable"].values())
    assert info["torch"] == torch.__version__


@pytest.mark.parametrize("name", ("alk_conv", "alk_conv_backward", "alk_stage", "alk_stage_backward"))
def test_convolutions_beyond_the_limits_of_cuda_go_to_triton(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    op, calls = name.removesuffix("_backward"), []
    arguments = getattr(torch.ops.fastsr, name).default._schema.arguments
    monkeypatch.setattr(_cuda, "_run", lambda name, first, args: calls.append("cuda"))
    for backend in ("cuda", "triton"):
        monkeypatch.setitem(_dispatch._kernels[op], backend, lambda x: None)
    monkeypatch.setattr(_dispatch, "on_gpu", lambda x: True)
    run = _cuda._choosing(op, name, lambda *args: calls.append("triton"))
    for channels, taps in ((128, 33), (129, 33), (128, 35)):
        sizes = {"pw_weight": (channels, 4, 1, 1), "lora1_weight": (channels, 1, taps, 1), "eps": (), "activation": ()}
        run(*(torch.empty(sizes.get(argument.name, (1, 200, 2, 2))) for argument in arguments))
    assert calls == ["cuda", "triton", "triton"]


CODES = "sm_80 sm_86 sm_89 sm_90a sm_100 sm_120 compute_120"  # what setup.py asks nvcc for


@pytest.mark.parametrize(
    ("capability", "code"),
    [
        ((7, 5), None),
        ((8, 0), "sm_80"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90a"),
        ((10, 3), "sm_100"),
        ((11, 0), None),
        ((12, 1), "sm_120"),
        ((13, 0), "compute_120"),
    ],
)
def test_a_gpu_runs_the_code_of_its_generation_or_ptx(capability: tuple[int, int], code: str | None) -> None:
    assert _device.code_for(capability, _device.parse_codes(CODES)) == code


@pytest.mark.parametrize(
    ("major", "minor", "said"),
    [
        (9, 0, None),
        (13, 1, "the GPU is sm_131, newer than the CUDA C++ kernels: the driver compiles their PTX (compute_120)"),
        (11, 0, None),  # Triton's calls say why they are taken
    ],
)
def test_a_gpu_without_code_of_its_own_is_announced_once(
    major: int, minor: int, said: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = types.SimpleNamespace(major=major, minor=minor)
    x: Any = types.SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(_cuda, "CODES", _device.parse_codes(CODES))
    monkeypatch.setattr(_cuda, "missing", lambda: None)
    monkeypatch.setattr(_cuda, "_announced", False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    with caplog.at_level("INFO", logger="fastsr"):
        _cuda._announce(x)
    assert _cuda._announced
    assert len(caplog.records) == (0 if said is None else 1)
    assert all(said in record.getMessage() for record in caplog.records)
    assert (_cuda._no_code(x) is None) == (major != 11)
