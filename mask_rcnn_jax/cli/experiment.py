"""Where the settings of a command come from, and the cache of compiled programs."""

import os
from pathlib import Path

import jax

from mask_rcnn_jax.config import load_config_file
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.workdir import CONFIG_FILE, read_config


def load_experiment(file: Path) -> ExperimentConfig:
    """What `get_config()` of a Python file returns, or the configuration of the run or import in a folder.

    Raises UserError where it is no experiment's configuration.
    """
    if file.is_dir():
        if (stored := read_config(file)) is None:
            raise UserError(f"--config {file} is a folder without a run's {CONFIG_FILE}")
        return stored
    config = load_config_file(file)
    if not isinstance(config, ExperimentConfig):
        raise UserError(f"get_config() of {file} must return an ExperimentConfig, not {type(config).__name__}")
    return config


def use_compile_cache() -> None:
    """Keeps compiled programs between runs, where JAX_COMPILATION_CACHE_DIR does not say where already."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "mask_rcnn_jax" / "compiled"))
