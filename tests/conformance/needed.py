"""What tests compare with: where it is, and skipping them where it is not."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def shared_folder() -> Path:
    """The folder of real data and golden values: $MASK_RCNN_SHARED, or `shared` beside the checkout."""
    return Path(os.environ.get("MASK_RCNN_SHARED") or ROOT.parent / "shared")


def torchvision() -> None:
    """Skips without torchvision's compiled operators. A file calls it before it imports what imports torch."""
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"needs torchvision with its operators: {error}", allow_module_level=True)
