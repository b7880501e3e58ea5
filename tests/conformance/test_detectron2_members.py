"""The stages that members of the family have of their own, of each recorded Detectron2 model."""

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance.test_detectron2_stages import MEMBERS, cases, check, golden  # noqa: E402, F401  a fixture


@pytest.mark.parametrize(("name", "stage"), cases(MEMBERS))
def test_rows_hold(golden, name, stage):  # noqa: F811
    check(golden(name), stage)
