"""What lowered programs ask of their products."""

import re
from pathlib import Path
from typing import Any

import jax
from jaxlib.mlir import ir

import mask_rcnn_jax

_PACKAGE = str(Path(mask_rcnn_jax.__file__).parent)
# Layers, whose products have the precision of the model's arithmetic.
_LAYERS = {
    "conv2d",
    "_xla",
    "Deconv2x2.__call__",
    "Deconv4x4.__call__",
    "BoxHead.__call__",
    "MaskHead._logits",
}


def count_exact_products(lowered: jax.stages.Lowered) -> int:
    """The number of products that are float32 on every device; all others must be of layers."""
    exact, elsewhere = 0, []

    def visit(operation: Any) -> ir.WalkResult:
        nonlocal exact
        if operation.name in ("stablehlo.dot_general", "stablehlo.convolution"):
            if str(operation.attributes["precision_config"]).count("HIGHEST") == 2:
                exact += 1
            else:
                frames = re.findall(rf'"([^"]*)"\("{re.escape(_PACKAGE)}', str(operation.location))
                if not frames or frames[0] not in _LAYERS:
                    elsewhere.append(str(operation.location)[:500])
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir("stablehlo").operation.walk(visit)
    assert not elsewhere, "rounded to TF32 or bfloat16:\n" + "\n".join(elsewhere)
    return exact
