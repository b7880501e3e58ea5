"""The packages that a plain installation lacks, and what brings them."""

import importlib

from mask_rcnn_jax.errors import UserError

# What each extra of pyproject.toml is imported as.
EXTRAS = {
    "onnx": ("onnx",),
    "outlines": ("contourpy",),
    "plan-gpu": ("jax_cuda13_plugin",),
    "plan-tpu": ("libtpu",),
    "plots": ("matplotlib",),
    "proposals": ("cv2",),
    "supervision": ("supervision",),
    "tfds": ("tensorflow_datasets",),
    "tiles": ("scipy",),
    "video": ("av",),
    "wandb": ("wandb",),
    "yolo": ("yaml",),
}


def require(extra: str, purpose: object) -> None:
    """Import an extra's packages. Raises UserError that begins with the `purpose` where one cannot be imported."""
    for package in EXTRAS[extra]:
        try:
            if importlib.import_module(package).__file__ is None:
                raise ImportError(f"a folder {package} is in its place")
        except ImportError as error:
            install = f"pip install 'mask-rcnn-jax[{extra}]'"
            raise UserError(f"{purpose} needs the package {package} ({error}); run: {install}") from None
