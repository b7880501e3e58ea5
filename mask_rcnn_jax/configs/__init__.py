"""The configurations that come with the package: `from mask_rcnn_jax.configs import coco_r50_fpn_1x`.

Their files lie in this folder where the package is installed, and in `configs/` at the top of a checkout.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

DEFAULT = "shapes"

_HERE = Path(__file__).parent
FOLDER = _HERE if os.path.isfile(_HERE / f"{DEFAULT}.py") else _HERE.parents[1] / "configs"
__path__ = [str(FOLDER)]


def names() -> list[str]:
    """Return the names that `--config` takes."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")


def file_of(name: str) -> Path:
    """Return the Python file of one of `names`."""
    return FOLDER / f"{name}.py"


if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...  # the modules of `names`
