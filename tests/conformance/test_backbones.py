"""Features and gradients of backbones are torchvision's."""

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance import backbones  # noqa: E402

# Swin's stages are compared one by one in tests/models/test_swin.py; its whole gradient is a large program.
CASES = [pytest.param(name, marks=[pytest.mark.slow] if "swin" in name else []) for name in backbones.BACKBONES]


@pytest.mark.parametrize("name", CASES)
def test_features_and_gradients_are_the_references(name):
    rows = list(backbones.rows(name))
    assert len(rows) == 2
    assert not [str(row) for row in rows if not row.ok]
