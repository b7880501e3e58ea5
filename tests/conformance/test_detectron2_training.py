"""Losses and norms of gradients of each recorded Detectron2 model stay within the bounds of the conformance report."""

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance import detectron2  # noqa: E402
from tests.conformance.golden import NAMES, Golden  # noqa: E402

# What FPN's says, that of X101 and the cascade, which stand on it, say too.
CASES = [pytest.param(name, marks=[pytest.mark.slow] if name == "fpn" else []) for name in NAMES]


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_the_reference(name, shared):
    rows = list(detectron2.training_rows(Golden(shared, name)))
    assert rows
    assert not [str(row) for row in rows if not row.ok]
