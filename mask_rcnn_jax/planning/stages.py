"""The stage of a model that an instruction of a compiled program belongs to, by the scopes that it was traced in."""

import re
from dataclasses import dataclass

# Scopes that jax opens itself, and the branches of conditions.
_STRUCTURE = re.compile(
    r"(while|body|cond|body_pred|cond_pred|scan|shard_map|pjit|checkpoint|remat2?|rematted_computation|closed_call"
    r"|eval_jaxpr|core_call|custom_(jvp|vjp)_call\w*|branch_\d+_fun|.*<.*)?"
)
_TRANSFORM = re.compile(r"(\w+)\((.*)\)")


@dataclass(frozen=True)
class Stage:
    """A name from `jax.named_scope`, empty outside of all, and whether the gradient is computed there."""

    name: str
    backward: bool = False


def stage_of(op_name: str) -> Stage:
    """Return the outermost scope of a name such as `jit(step)/shard_map/transpose(jvp(res2))/conv_general_dilated`."""
    first, _, _ = op_name.partition(";")  # of several instructions in one
    scopes = map(_scope, _split(first)[:-1])
    name = next((scope for scope in scopes if not _STRUCTURE.fullmatch(scope)), "")
    return Stage(name, "transpose(" in op_name)


def _scope(part: str) -> str:
    """Take off the transformations; what `jit` wraps is a function's name."""
    while wrapped := _TRANSFORM.fullmatch(part):
        part = "" if wrapped[1] in ("jit", "pjit") else wrapped[2]
    return part


def _split(op_name: str) -> list[str]:
    """Split at slashes outside of parentheses."""
    parts, depth = [""], 0
    for character in op_name:
        depth += (character == "(") - (character == ")")
        if character == "/" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
