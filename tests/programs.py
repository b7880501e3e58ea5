"""Properties of lowered programs: precision of products, names of stages, what crosses devices."""

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
    "SoftmaxMaskHead._log_probabilities",
    "MLPMaskHead._logits",
    "CoarseHead._logits",
    "PointHead.logits",
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


def scopes(lowered: jax.stages.Lowered) -> set[str]:
    """The names in the paths of a program's operations, such as "mask_head" in "jit(step)/jvp(mask_head)/dot"."""
    paths = re.findall(r'"([^"]*/[^"]*)"', lowered.as_text(debug_info=True))
    return {name for path in paths if ".py" not in path for name in re.findall(r"\w+", path)}


def loops_of_unknown_length(lowered: jax.stages.Lowered) -> int:
    """The number of loops that do not end at a constant: on a GPU each of their turns waits for the host."""
    unknown = 0

    def visit(operation: Any) -> ir.WalkResult:
        nonlocal unknown
        if operation.name == "stablehlo.while":
            names = sorted(inner.operation.name.removeprefix("stablehlo.") for inner in operation.regions[0].blocks[0])
            unknown += names != ["compare", "constant", "return"]
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir("stablehlo").operation.walk(visit)
    return unknown


def collective_operands(lowered: jax.stages.Lowered) -> tuple[int, int]:
    """The number of arrays that cross devices outside of loops and inside, followed through the program's functions."""
    collectives = {f"stablehlo.{name}" for name in ("all_reduce", "all_gather", "all_to_all", "reduce_scatter")}
    collectives |= {"stablehlo.collective_permute", "stablehlo.collective_broadcast"}
    found = {False: 0, True: 0}

    def visit(operation: Any, in_loop: bool) -> None:
        if operation.name in collectives:
            found[in_loop] += len(operation.operands)
        if operation.name == "func.call":
            visit(functions[operation.attributes["callee"].value], in_loop)
        for region in operation.regions:
            for block in region:
                for inner in block:
                    visit(inner.operation, in_loop or operation.name == "stablehlo.while")

    module = lowered.compiler_ir("stablehlo")
    functions = {function.attributes["sym_name"].value: function.operation for function in module.body}
    visit(functions["main"], False)
    return found[False], found[True]
