"""freeze: what becomes of weights that are parametrized, loaded, saved and moved."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from test_freeze import outputs, state
from test_models_cpu import NETS, image, network
from torch import Tensor, nn

import fastsr


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal", "own"])
def test_a_parametrized_network_is_trained_on(kind: str) -> None:
    """The copy shares its classes, which have the properties that compute the weights."""
    net = network("mlrn", num_block=1).train()
    for conv in (net.block_1.c1_r, net.block_1.c5):
        if kind == "own":
            torch.nn.utils.parametrize.register_parametrization(conv, "weight", Doubled())
        else:
            getattr(torch.nn.utils.parametrizations, kind)(conv)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(2):
        optimiser.zero_grad()
        net(image()).square().mean().backward()
        assert all(p.grad is not None for p in net.block_1.c1_r.parameters())
        optimiser.step()
        before, kinds = state(net), list(map(type, net.modules()))
        frozen = fastsr.freeze(net)
        assert net.training and list(map(type, net.modules())) == kinds
        assert before.keys() == net.state_dict().keys()
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
        assert type(frozen.block_1.c1_r) is nn.Conv2d and "block_1.c1_r.weight" in frozen.net.state_dict()
        evaluated = outputs(copy.deepcopy(net).eval(), image())
        torch.testing.assert_close(outputs(frozen, image()), evaluated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("duplicate", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_nothing_loads_into_a_frozen_network(duplicate: Any) -> None:
    """Neither what it is a part of nor its own parts."""
    net = duplicate(fastsr.freeze(network("mlrn", num_block=1)))
    before = state(net)
    for module in (net, net.net, net.block_1.c1_r, nn.Sequential(net), nn.DataParallel(net.net)):
        other = {key: value + 1 for key, value in module.state_dict().items()}
        for strict, assign in ((True, False), (False, False), (True, True)):
            with pytest.raises(fastsr.InputError, match="a frozen network takes no state dict"):
                module.load_state_dict(other, strict=strict, assign=assign)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NETS)
def test_a_frozen_network_is_not_saved(tmp_path: Path, name: str) -> None:
    """Nor the copy within it: loading could not build a folded one."""
    net, path = network(name, num_block=1), tmp_path / "frozen.safetensors"
    frozen = fastsr.freeze(net)
    with pytest.raises(fastsr.InputError, match="save: net is a FrozenNet"):
        fastsr.save(frozen, path)  # type: ignore[arg-type]
    for inner in (frozen.net, copy.deepcopy(frozen.net), pickle.loads(pickle.dumps(frozen)).net):
        with pytest.raises(fastsr.InputError, match=r"save: net is a frozen .+; pass the network that"):
            fastsr.save(inner, path)
    assert not path.exists()
    fastsr.save(net, path)
    assert path.exists()


def packed_in(net: nn.Module) -> dict[str, Tensor | None]:
    """What every part has packed; None where it could not."""
    return {name: m.packed for name, m in net.named_modules() if hasattr(m, "packed") and name}


@pytest.mark.parametrize("name", NETS)
def test_packs_anew_when_moved(cpu_kernels: None, name: str) -> None:
    net = network(name, num_block=1)
    frozen = fastsr.freeze(net)
    first = packed_in(frozen.net)
    assert any(p is not None for p in first.values())
    frozen.to(torch.bfloat16)
    rounded = packed_in(frozen.net)
    frozen.double()
    assert not any(p is not None for p in packed_in(frozen.net).values())
    frozen.float()
    again = packed_in(frozen.net)
    assert first.keys() == rounded.keys() == again.keys()
    for key, p in first.items():
        a, b = rounded[key], again[key]
        if p is not None:
            assert a is not None and b is not None
            assert torch.equal(a, b) and not torch.equal(a, p), key  # the weights stay rounded


@pytest.mark.parametrize("name", ["alkdnet", "bsrn", "mlrn"])
def test_a_replica_looks_up_weights_of_its_own(name: str) -> None:
    """As nn.DataParallel makes one for every other GPU: a shallow copy of each module, which gets other weights."""
    net = fastsr.freeze(fastsr.create_model(name, scale=2, num_feat=16, esa_channels=4, num_block=1).eval())
    found = [module for module in net.modules() if getattr(module, "kept", None) is not None]
    assert found
    for module in found:
        assert module._replicate_for_data_parallel().kept is None and module.kept is not None


def test_a_replica_has_no_graphs() -> None:
    frozen = fastsr.freeze(network("mlrn", num_block=1), cuda_graph=True)
    assert frozen._replicate_for_data_parallel().graphs is None and frozen.graphs is not None


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*isinstance:FutureWarning")
@pytest.mark.parametrize("name", NETS)
def test_an_export_finds_the_parameters_where_they_are(name: str) -> None:
    """And not what was looked up when they were packed, as constants beside them."""
    frozen = fastsr.freeze(network(name, num_block=1))
    signature = torch.export.export(frozen, (image(),)).graph_signature
    assert not signature.lifted_tensor_constants and len(signature.parameters) > 10
