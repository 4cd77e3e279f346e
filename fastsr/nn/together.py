"""Weights of many ALKConvs that are packed by one launch of each forward pass, and handed to the parts that own them.

Nothing outlives the call: only `fastsr.freeze` keeps packed weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastsr import ops
from fastsr.reference import ALKConvWeights

Ready = tuple[ALKConvWeights, "Tensor | None"]  # an ALKConv's weights as its part looked them up, and packed


def packed_together(x: Tensor, parts: Sequence[Sequence[ops.ALKPart]]) -> list[list[Ready]]:
    """What to hand each owner of such parts for a map like x; without parts nothing."""
    packed = iter(ops.pack_alk_together(x, [part for of_owner in parts for part in of_owner]))
    return [[(weights, next(packed)) for weights, _ in of_owner] for of_owner in parts]
