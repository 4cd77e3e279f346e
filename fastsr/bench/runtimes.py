"""Peers outside PyTorch: ONNX Runtime and OpenVINO, on the ONNX export of the reference path."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsr.bench.cases import Case
from fastsr.bench.peers import PeerMissing, Runner

INSTALL = "pip install onnx onnxscript onnxruntime openvino"


def _exported(case: Case, folder: str) -> Path:
    file = Path(folder) / "case.onnx"
    try:
        module = case.build().to(case.tensor_dtype)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of every package that it does without
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.onnx.export(module, case.maps(), file, dynamo=True, verbose=False, external_data=False)
    except ImportError as error:
        raise PeerMissing(f"{error}: {INSTALL}") from error
    return file


def onnx_runtime(case: Case, device: torch.device) -> Runner:
    try:
        import onnxruntime
    except ImportError as error:
        raise PeerMissing(f"onnxruntime is not installed: {INSTALL}") from error
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise PeerMissing(f"this onnxruntime has no {provider}: pip install onnxruntime-gpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    settings = {"use_tf32": int(case.dtype == "tf32")} if device.type == "cuda" else {}
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(str(_exported(case, folder)), options, [(provider, settings)])
    inputs = case.maps(device=device)
    names = [i.name for i in session.get_inputs()]
    if device.type == "cpu":  # torch and numpy share the memory
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return Runner(lambda: session.run(None, feed), inputs, nullcontext)

    import numpy as np

    binding = session.io_binding()
    element = {torch.float32: np.float32, torch.float16: np.float16}.get(case.tensor_dtype)
    if element is None:
        raise PeerMissing(f"numpy has no {case.dtype}")
    for name, x in zip(names, inputs, strict=True):
        binding.bind_input(name, "cuda", device.index or 0, element, tuple(x.shape), x.data_ptr())
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", device.index or 0)

    def fetch(_: Any) -> list[Tensor]:
        return [torch.from_numpy(value) for value in binding.copy_outputs_to_cpu()]

    return Runner(lambda: session.run_with_iobinding(binding), inputs, nullcontext, fetch=fetch)


def openvino(case: Case, device: torch.device) -> Runner:
    try:
        import openvino
    except ImportError as error:
        raise PeerMissing(f"openvino is not installed: {INSTALL}") from error
    with tempfile.TemporaryDirectory() as folder:
        model = openvino.Core().read_model(str(_exported(case, folder)))
        settings = {
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"fp16": "f16", "bf16": "bf16"}.get(case.dtype, "f32"),
        }
        compiled = openvino.compile_model(model, "CPU", settings)
    inputs = case.maps()
    arrays = [x.numpy() for x in inputs]  # torch and numpy share the memory
    request = compiled.create_infer_request()

    def run() -> list[Any]:
        request.infer(arrays, share_inputs=True)
        return [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    return Runner(run, inputs, nullcontext)


RUNTIMES: dict[str, Callable[[Case, torch.device], Runner]] = {"onnxruntime": onnx_runtime, "openvino": openvino}
