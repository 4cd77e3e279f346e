"""Exports consist of standard operators and give the same pictures.

Dynamic sizes start at 24 pixels: below, the ESA's pooled map has one pixel, and exporters treat extents of 1 apart.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastsr
from fastsr import reference

NETWORKS = ("alkdnet", "mlrn", "bsrn", "rlfn")


def small(name: str) -> fastsr.models.SuperResolutionNet:
    return fastsr.create_model(name, num_block=1, num_feat=16).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_export_has_only_standard_operators(name: str) -> None:
    net = small(name)
    dynamic = {
        "x": {0: torch.export.Dim("n", max=8), 2: torch.export.Dim("h", min=24), 3: torch.export.Dim("w", min=24)}
    }
    program = torch.export.export(net, (torch.rand(2, 3, 32, 28),), dynamic_shapes=dynamic)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets and not any("fastsr" in target for target in targets)
    x = torch.rand(3, 3, 31, 24)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-5 * net.input_range)


@pytest.mark.parametrize("size", ((7, 12), (9, 23), (31, 8)))
def test_pooling_in_exports_by_an_old_pytorch_is_the_same(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, *size).round(decimals=0).requires_grad_()  # with equal maxima
    plain = reference._pooled(x)
    monkeypatch.setattr(reference, "_POOL_TIES_SIZES", True)
    monkeypatch.setattr(reference, "exporting", lambda: True)
    thinned = reference._pooled(x)
    assert torch.equal(plain, thinned)
    cotangent = torch.randn_like(plain)
    a, b = (torch.autograd.grad(y, x, cotangent)[0] for y in (plain, thinned))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_with_dynamic_size(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    net = small(name)
    file = tmp_path / "net.onnx"
    torch.onnx.export(
        net,
        (torch.rand(2, 3, 32, 28),),
        file,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes={
            "x": {0: torch.export.Dim("n", max=8), 2: torch.export.Dim("h", min=24), 3: torch.export.Dim("w", min=24)}
        },
        dynamo=True,
        verbose=False,
    )
    domains = {node.domain for node in onnx.load(file).graph.node}
    assert domains <= {"", "ai.onnx"}, domains
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    x = torch.rand(1, 3, 33, 26)
    (y,) = session.run(["output"], {"input": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(y), net(x), rtol=1e-3, atol=1e-4)


def test_compiled_network_has_one_graph_and_does_not_recompile() -> None:
    net = small("alkdnet")
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for height, width in ((64, 70), (80, 96), (97, 65)):
            x = torch.rand(1, 3, height, width)
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
