"""Programs that come to the same bits in every run on a GPU, by two flags of XLA.

By default XLA times several algorithms of a product or a convolution and takes the fastest, which may be another in the
next run, and cuDNN's gradients of kernels may add up by atomics, in any order. With these flags it takes the first
algorithm of a fixed list, without those that are not deterministic.
"""

import os

from jax._src import xla_bridge  # jax does not say elsewhere whether its devices are in use

from mask_rcnn_jax.errors import UserError

FLAGS = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_exclude_nondeterministic_ops=true")


def is_deterministic(flags: str) -> bool:
    """Return True where these XLA_FLAGS ask for deterministic programs."""
    return set(FLAGS) <= set(flags.split())


def use_deterministic_programs() -> None:
    """Add the flags to XLA_FLAGS, which XLA reads when jax first uses a device.

    Raises UserError where that was before.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if is_deterministic(given):
        return
    if xla_bridge.backends_are_initialized():
        raise UserError(
            "deterministic programs cannot be asked for once jax has used a device; set"
            f" XLA_FLAGS='{' '.join(FLAGS)}' before the program starts"
        )
    names = {flag.partition("=")[0] for flag in FLAGS}
    others = [flag for flag in given.split() if flag.partition("=")[0] not in names]
    os.environ["XLA_FLAGS"] = " ".join([*others, *FLAGS])
