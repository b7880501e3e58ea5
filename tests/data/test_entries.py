"""Readers of annotation entries: what counts as a number."""

import math

import numpy as np
import pytest

from mask_rcnn_jax.data.records.entries import is_number


@pytest.mark.parametrize("value", [0, -1.5, 10**99, np.float32(2), np.int64(3), np.float64(-4)])
def test_finite_numbers_are_numbers(value) -> None:
    assert is_number(value)
    assert is_number(value, 2.0**53) == (abs(value) <= 2.0**53)


@pytest.mark.parametrize(
    "value", [True, np.bool_(1), None, "1", [1], math.nan, math.inf, np.float32("inf"), 10**400, 1j]
)
def test_nothing_else_is(value) -> None:
    assert not is_number(value)
