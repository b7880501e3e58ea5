"""Each stage of each recorded Detectron2 model stays within the bounds of the conformance report."""

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance import detectron2  # noqa: E402
from tests.conformance.golden import NAMES, Golden  # noqa: E402


@pytest.fixture(scope="module", params=NAMES)
def golden(request, shared):
    return Golden(shared, request.param)


@pytest.mark.parametrize("stage", ["backbone_rows", "rpn_rows", "box_rows_of", "head_rows", "end_to_end_rows"])
def test_rows_hold(golden, stage):
    rows = list(getattr(detectron2, stage)(golden))
    assert rows
    assert not [str(row) for row in rows if not row.ok]
