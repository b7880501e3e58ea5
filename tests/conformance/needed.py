"""Skips a file of tests where what it compares with is not there."""

import pytest


def torchvision() -> None:
    """To be called before the file imports what imports torch."""
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"needs torchvision with its operators: {error}", allow_module_level=True)
