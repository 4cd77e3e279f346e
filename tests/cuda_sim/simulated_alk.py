"""alk_conv and alk_stage in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import simulator
import torch
from simulator import DTYPES, POISON, Library, View
from torch import Tensor

from fastsr import _gelu
from fastsr.ops._define import empty_map


class AlkCall(ctypes.Structure):
    """AlkCall of alk.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "parameter_dtype")),
        *((name, ctypes.c_int64) for name in ("k", "d", "taps", "activation", "residual")),
        *((name, ctypes.c_int64) for name in ("accuracy", "tf32", "keeps")),
        ("eps", ctypes.c_double),
        ("parameters", ctypes.c_void_p * 11),
        *((name, View) for name in ("x", "y", "distilled", "dx")),
        ("gradients", ctypes.c_void_p * 11),
        *((name, ctypes.c_void_p) for name in ("workspace", "packed")),
    )


class Alk(Library):
    """The launchers, called with tensors."""

    def __init__(self) -> None:
        super().__init__("alk")

    def _call(self, x: Tensor, parameters: Sequence[Tensor | None], eps: float, activation: int) -> AlkCall:
        pw, lora1 = parameters[2], parameters[3]
        assert pw is not None and lora1 is not None
        call = AlkCall(dtype=DTYPES.index(x.dtype), parameter_dtype=DTYPES.index(pw.dtype), k=pw.shape[0], eps=eps)
        call.d = 0 if parameters[0] is None else parameters[0].shape[0]
        call.taps, call.activation, call.residual = lora1.shape[2], activation, int(parameters[0] is not None)
        call.accuracy, call.tf32 = _gelu.code(), int(simulator.tf32)
        call.parameters = (ctypes.c_void_p * 11)(*(None if p is None else p.data_ptr() for p in parameters))
        call.x = View.of(x)
        return call

    def pack(self, parameters: Sequence[Tensor | None]) -> Tensor:
        """As `alk_conv_pack`."""
        pw = parameters[2]
        assert pw is not None
        return self._pack(self._call(pw.new_empty(0, pw.shape[1], 1, 1), parameters, 0.0, 0))

    def _pack(self, call: AlkCall) -> Tensor:
        self.library.sim_alk_packed_bytes.restype = ctypes.c_int64
        packed = torch.full((self.library.sim_alk_packed_bytes(ctypes.byref(call)),), POISON, dtype=torch.uint8)
        call.workspace = packed.data_ptr()
        self.run("sim_alk_pack", call)
        return packed

    def forward_packed(
        self, x: Tensor, packed: Tensor, k: int, d: int, taps: int, eps: float, activation: int
    ) -> tuple[Tensor, Tensor]:
        """(distilled, y), from what `pack` returned."""
        call = AlkCall(
            DTYPES.index(x.dtype), 0, k, d, taps, activation, int(d > 0), _gelu.code(), int(simulator.tf32), eps=eps
        )
        call.x, call.packed = View.of(x), packed.data_ptr()
        return self._forward(x, call)

    def forward(
        self, x: Tensor, parameters: Sequence[Tensor | None], eps: float, activation: int
    ) -> tuple[Tensor, Tensor]:
        """(distilled, y)"""
        parameters = [None if p is None else p.contiguous() for p in parameters]
        return self._forward(x, self._call(x, parameters, eps, activation))

    def forward_kept(
        self, x: Tensor, parameters: Sequence[Tensor | None], eps: float, activation: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(distilled, y, packed), the latter for the backward."""
        parameters = [None if p is None else p.contiguous() for p in parameters]
        call = self._call(x, parameters, eps, activation)
        call.keeps = 1
        packed = self._pack(call)
        call.packed = packed.data_ptr()
        return (*self._forward(x, call), packed)

    def _forward(self, x: Tensor, call: AlkCall) -> tuple[Tensor, Tensor]:
        y, distilled = empty_map(x, call.k), empty_map(x, call.d)
        for output in (y, distilled):
            output.fill_(torch.nan)
        call.y, call.distilled = View.of(y), View.of(distilled)
        self.run("sim_alk_forward", call)
        return distilled, y

    def backward(
        self,
        grad: Tensor,
        grad_distilled: Tensor | None,
        x: Tensor,
        parameters: Sequence[Tensor | None],
        eps: float,
        activation: int,
        packed: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """dx and the gradients of the parameters that are there; `packed` is what `forward_kept` returned."""
        parameters = [None if p is None else p.contiguous() for p in parameters]
        call = self._call(x, parameters, eps, activation)
        gradients = [None if p is None else torch.full_like(p, torch.nan) for p in parameters]
        dx = empty_map(x, x.shape[1]).fill_(torch.nan)
        call.gradients = (ctypes.c_void_p * 11)(*(None if g is None else g.data_ptr() for g in gradients))
        call.y, call.dx = View.of(grad), View.of(dx)
        if packed is not None:
            call.keeps, call.packed = 1, packed.data_ptr()
            assert packed.numel() == self.library.sim_alk_packed_bytes(ctypes.byref(call))
        if grad_distilled is not None:
            call.distilled = View.of(grad_distilled)
        self.run("sim_alk_backward", call)
        return (dx, *(g for g in gradients if g is not None))


LIBRARY = Alk()


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""

    def alk_conv(x: Tensor, *rest: Any) -> Tensor:
        *weights, eps, activation = rest
        return LIBRARY.forward(x, [None, None, *weights], eps, activation)[1]

    def alk_stage(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        *parameters, eps = rest
        return LIBRARY.forward(x, parameters, eps, 1)

    def alk_conv_backward(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *weights, eps, activation = rest
        return LIBRARY.backward(grad, None, x, [None, None, *weights], eps, activation)

    def alk_stage_backward(grad_distilled: Tensor, grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *parameters, eps = rest
        return LIBRARY.backward(grad, grad_distilled, x, parameters, eps, 1)

    def alk_conv_pack(*given: Any) -> Tensor:
        *weights, d_weight, d_bias = (None if p is None else p.contiguous() for p in given)
        return LIBRARY.pack([d_weight, d_bias, *weights])

    def alk_conv_packed(x: Tensor, packed: Tensor, k: int, taps: int, eps: float, code: int) -> Tensor:
        return LIBRARY.forward_packed(x, packed, k, 0, taps, eps, code)[1]

    def alk_stage_packed(x: Tensor, packed: Tensor, d: int, taps: int, eps: float) -> tuple[Tensor, Tensor]:
        return LIBRARY.forward_packed(x, packed, x.shape[1], d, taps, eps, 1)

    def alk_conv_kept(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *weights, eps, activation = rest
        return LIBRARY.forward_kept(x, [None, None, *weights], eps, activation)[1:]

    def alk_stage_kept(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *parameters, eps = rest
        return LIBRARY.forward_kept(x, parameters, eps, 1)

    def alk_conv_kept_backward(grad: Tensor, x: Tensor, packed: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *weights, eps, activation = rest
        return LIBRARY.backward(grad, None, x, [None, None, *weights], eps, activation, packed)

    def alk_stage_kept_backward(
        grad_distilled: Tensor, grad: Tensor, x: Tensor, packed: Tensor, *rest: Any
    ) -> tuple[Tensor, ...]:
        *parameters, eps = rest
        return LIBRARY.backward(grad, grad_distilled, x, parameters, eps, 1, packed)

    packing = (alk_conv_pack, alk_conv_packed, alk_stage_packed)
    keeping = (alk_conv_kept, alk_stage_kept, alk_conv_kept_backward, alk_stage_kept_backward)
    return {f.__name__: f for f in (alk_conv, alk_stage, alk_conv_backward, alk_stage_backward, *packing, *keeping)}
