"""The cache of compiled programs on disk, from which a second run starts warm."""

import os
from pathlib import Path

import jax


def use_compile_cache() -> None:
    """Keeps compiled programs between runs, where JAX_COMPILATION_CACHE_DIR does not say where already.

    They lie in $XDG_CACHE_HOME or ~/.cache. To be called before anything is compiled.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "mask_rcnn_jax" / "compiled"))
