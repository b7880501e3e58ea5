"""AP of the same weights on the same images through torchvision and through this project."""

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance import average_precision, trained  # noqa: E402

# What is detected and how it is scored are compared apart: "end to end" of the stages, and tests/evaluation.
pytestmark = [pytest.mark.usefixtures("shared"), pytest.mark.slow]


def test_average_precision_of_random_weights_on_what_they_detect():
    broken = [str(row) for row in average_precision.rows() if not row.ok]
    assert not broken, "\n".join(broken)


def test_average_precision_of_a_trained_model_on_real_annotations():
    broken = [str(row) for row in trained.rows() if not row.ok]
    assert not broken, "\n".join(broken)
