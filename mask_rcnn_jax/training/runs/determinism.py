"""Programs that come to the same bits in every run on a GPU, by two flags of XLA.

By default XLA times several algorithms of a product or a convolution and takes the fastest, which may be another in the
next run, and cuDNN's gradients of kernels may add up by atomics, in any order. With these flags it takes the first
algorithm of a fixed list, without those that are not deterministic.
"""

import os

from jax._src import xla_bridge  # jax does not say elsewhere whether its devices are in use

from mask_rcnn_jax.errors import UserError

FLAGS = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_exclude_nondeterministic_ops=true")


_NAMES = tuple(flag.partition("=")[0] for flag in FLAGS)
_ON = ("", "true", "1")  # XLA does not mind case or quotes


def is_deterministic(flags: str) -> bool:
    """Return True where these XLA_FLAGS ask for deterministic programs; XLA takes the last of contradicting ones."""
    last = {name: value for name, _, value in (flag.partition("=") for flag in flags.split())}
    return all(name in last and last[name].strip("'\"").lower() in _ON for name in _NAMES)


def use_deterministic_programs() -> None:
    """Add the flags to XLA_FLAGS, which XLA reads when jax first uses a device.

    Raises UserError where that was before, and where XLA_FLAGS names a file of flags, which cannot be added to.
    """
    given = os.environ.get("XLA_FLAGS", "").strip()
    if is_deterministic(given):
        return
    if xla_bridge.backends_are_initialized():
        raise UserError(
            "deterministic programs cannot be asked for once jax has used a device; set"
            f" XLA_FLAGS='{' '.join(FLAGS)}' before the program starts"
        )
    if given and not given.startswith("--"):
        raise UserError(f"XLA_FLAGS names the file {given}; put its flags into XLA_FLAGS, so that others can be added")
    others = [flag for flag in given.split() if flag.partition("=")[0] not in _NAMES]
    os.environ["XLA_FLAGS"] = " ".join([*others, *FLAGS])
