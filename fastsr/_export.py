"""Whether an exporter looks at the code that runs."""

from __future__ import annotations

import torch

# The flag behind `is_exporting()`, for which dynamo puts True into whatever it compiles before PyTorch 2.13.
_HAS_FLAG = hasattr(torch.compiler, "_is_exporting_flag")


def exporting() -> bool:
    """Exports must consist of standard operators, so they always take the reference path."""
    exports = torch.compiler._is_exporting_flag if _HAS_FLAG else torch.compiler.is_exporting()
    return exports or torch.onnx.is_in_onnx_export()
