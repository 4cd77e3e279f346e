"""Against what fastsr is measured. A peer turns a case into a function to time, or says why it cannot.

"Eager" and "compile" are PyTorch on fastsr's reference path, which is the networks in plain PyTorch; ONNX Runtime and
OpenVINO run the export of the same path.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastsr
from benchmarks.cases import Case

Run = Callable[[], Any]


class PeerMissing(Exception):
    """Why a peer cannot take part."""


def _prepared(case: Case, channels_last: bool) -> tuple[nn.Module, Tensor]:
    module, x = case.build(), case.image()
    if channels_last:
        for parameter in module.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return module, x.contiguous(memory_format=torch.channels_last)
    return module, x


def torch_forward(backend: str, channels_last: bool, compiled: bool) -> Callable[[Case], Run]:
    def make(case: Case) -> Run:
        module, x = _prepared(case, channels_last)
        function: Callable[[Tensor], Any] = torch.compile(module, fullgraph=True) if compiled else module

        def run() -> Any:
            with fastsr.backend(backend), torch.inference_mode():
                return function(x)

        return run

    return make


def torch_training(backend: str, channels_last: bool, compiled: bool) -> Callable[[Case], Run]:
    """Forward, L1 loss and backward; the optimiser is the same for everybody and left out."""

    def make(case: Case) -> Run:
        module, x = _prepared(case, channels_last)
        module.train()
        function: Callable[[Tensor], Any] = torch.compile(module, fullgraph=True) if compiled else module
        with torch.no_grad(), fastsr.backend("reference"):
            shape = module(x).shape
        target = torch.rand(shape, generator=torch.Generator().manual_seed(1))

        def run() -> Tensor:
            module.zero_grad(set_to_none=True)
            with fastsr.backend(backend):
                torch.nn.functional.l1_loss(function(x), target).backward()
            # one vector: a tensor of few elements may differ by one unit of a ReLU that rounding opens or shuts
            return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

        return run

    return make


def _exported(case: Case, folder: str) -> Path:
    file = Path(folder) / "case.onnx"
    try:
        torch.onnx.export(case.build(), (case.image(),), file, dynamo=True, verbose=False, external_data=False)
    except ImportError as error:
        raise PeerMissing(f"{error}: pip install onnx onnxscript") from error
    return file


def onnx_runtime(case: Case) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise PeerMissing("onnxruntime is not installed: pip install 'fastsr[bench]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(str(_exported(case, folder)), options, ["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: case.image().numpy()}
    return lambda: session.run(None, feed)


def openvino(case: Case) -> Run:
    try:
        import openvino
    except ImportError as error:
        raise PeerMissing("openvino is not installed: pip install 'fastsr[bench]'") from error
    with tempfile.TemporaryDirectory() as folder:
        model = openvino.Core().read_model(str(_exported(case, folder)))
        settings = {
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = openvino.compile_model(model, "CPU", settings)
    image = case.image().numpy()
    request = compiled.create_infer_request()

    def run() -> list[Any]:
        request.infer([image], share_inputs=True)
        return [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    return run


FORWARD: dict[str, Callable[[Case], Run]] = {
    "fastsr": torch_forward("auto", channels_last=True, compiled=False),
    "eager": torch_forward("reference", channels_last=False, compiled=False),
    "eager channels_last": torch_forward("reference", channels_last=True, compiled=False),
    "compile": torch_forward("reference", channels_last=False, compiled=True),
    "compile channels_last": torch_forward("reference", channels_last=True, compiled=True),
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
}
TRAINING: dict[str, Callable[[Case], Run]] = {
    "fastsr": torch_training("auto", channels_last=True, compiled=False),
    "eager": torch_training("reference", channels_last=False, compiled=False),
    "eager channels_last": torch_training("reference", channels_last=True, compiled=False),
    "compile": torch_training("reference", channels_last=False, compiled=True),
    "compile channels_last": torch_training("reference", channels_last=True, compiled=True),
}
