"""Losses and gradients of narrow torchvision models, in float32 and float64."""

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance import training  # noqa: E402
from tests.conformance.sources import NARROW, SOURCES  # noqa: E402

pytestmark = pytest.mark.usefixtures("shared")

# What float64 shows within 1e-6, float32 shows again within the reference's own rounding; in float32 the tests of
# Detectron2's models compare gradients, too. Version 2 has all that version 1 has but fixed norms and keypoints, whose
# gradients Detectron2's models have. A model's tests follow one another: few passes are kept.
CASES = [
    pytest.param(name, dtype, marks=[] if dtype == "float64" and " v2" in name else [pytest.mark.slow])
    for name in NARROW
    for dtype in SOURCES[name].trained
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_losses_and_gradients_are_those_of_the_reference(name: str, dtype: str):
    broken = [str(row) for row in training.rows_in(name, dtype) if not row.ok]
    assert not broken, "\n".join(broken)
    # What vanishes is not compared: the bias of a heatmap, and levels that no RoI is pooled from.
    assert len(training.vanishing(name)) <= 4
