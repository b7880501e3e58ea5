"""Each stage of each recorded Detectron2 model stays within the bounds of the conformance report."""

import functools

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance import detectron2  # noqa: E402
from tests.conformance.golden import NAMES, Golden  # noqa: E402

# What a model has and FPN and C4 have not; the rest of it is slow, and so are X101 and DC5, whose convolutions
# tests/ops/test_conv.py compares, and Detectron's, whose weights tests/pretrained/test_detectron1.py compares.
OF_ITS_OWN = {
    "x101_fpn": (),
    "dc5": (),
    "cascade": ("box_rows_of",),
    "keypoint": ("head_rows",),
    "pointrend": ("head_rows",),
    "fast_rcnn": ("head_rows",),
    "fast_rcnn/roialign": (),
    "panoptic_fpn": ("panoptic_rows",),
    "vitdet": ("backbone_rows",),
    "detectron1": (),
}
MEMBERS = tuple(name for name in OF_ITS_OWN if OF_ITS_OWN[name])  # in a file of their own, as another worker's


def cases(names):
    return [
        pytest.param(name, stage, marks=[] if stage in OF_ITS_OWN.get(name, detectron2.STAGES) else [pytest.mark.slow])
        for name in names
        for stage in detectron2.stages_of(name)
    ]


@pytest.fixture(scope="module")
def golden(shared):
    return functools.lru_cache(maxsize=1)(functools.partial(Golden, shared))


@pytest.mark.parametrize(("name", "stage"), cases(name for name in NAMES if name not in MEMBERS))
def test_rows_hold(golden, name, stage):
    check(golden(name), stage)


def check(golden, stage):
    rows = list(detectron2.STAGES[stage](golden))
    assert rows
    assert not [str(row) for row in rows if not row.ok]
