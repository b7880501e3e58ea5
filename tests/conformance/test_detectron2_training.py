"""Losses and norms of gradients of each recorded Detectron2 model stay within the bounds of the conformance report."""

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance import detectron2  # noqa: E402
from tests.conformance.golden import NAMES, Golden  # noqa: E402

# C4 and the cascade have both kinds of backbone; DC5 and X101 differ in ResNet's convolutions, and the gradient of
# keypoints is compared with torchvision's in tests/models/test_keypoint_head.py.
QUICK = ("c4", "cascade")
CASES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in NAMES]


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_the_reference(name, shared):
    rows = list(detectron2.training_rows(Golden(shared, name)))
    assert rows
    assert not [str(row) for row in rows if not row.ok]
