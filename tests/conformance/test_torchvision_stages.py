"""Every stage of narrow torchvision models, given the reference's input to it, and the whole way from the images."""

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance import stages  # noqa: E402
from tests.conformance.sources import NARROW, SOURCES, case  # noqa: E402

pytestmark = pytest.mark.usefixtures("shared")

# What a model has and maskrcnn v1, of which every stage is compared here, has not; the rest of it is slow. Keypoints
# are compared with Detectron2's beside this.
V2 = ("backbone", "RPN head", "box head", "mask head")
OF_ITS_OWN = {
    "torchvision fasterrcnn v1, narrow": (),
    "torchvision fasterrcnn v2, narrow": (),
    "torchvision maskrcnn v2, narrow": V2,
    "torchvision keypointrcnn v1, narrow": (),
    "torchvision maskrcnn v1, narrow, epsilon 0": (),
}


def marks(name: str, stage: str) -> list[pytest.MarkDecorator]:
    return [] if stage in OF_ITS_OWN.get(name, (stage,)) else [pytest.mark.slow]


CASES = [
    pytest.param(name, stage, marks=marks(name, stage), id=f"{name}: {stage}")
    for name in NARROW
    for stage in stages.stages_of(SOURCES[name])
]


@pytest.mark.parametrize(("name", "stage"), CASES)
def test_the_stage_gives_what_the_reference_gives(name: str, stage: str):
    broken = [str(row) for row in stages.STAGES[stage](case(name)) if not row.ok]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name, "backbone")) for name in NARROW])
def test_the_comparison_is_of_something(name: str):
    """Random weights that detected nothing, or one thing again and again, would agree with anything."""
    found = case(name).trace.detections
    sizes = {tuple(image.shape[:2]) for image in case(name).images}
    assert len(sizes) == len(found) == 3
    assert sum(len(image["boxes"]) for image in found) > 100
    if SOURCES[name].config.num_classes > 1:
        assert all(len(image["labels"].unique()) > 5 for image in found)
    for image in found:
        assert len(image["boxes"]) > 10
        sides = image["boxes"][:, 2:] - image["boxes"][:, :2]
        assert sides.min() < 40
        assert sides.max() > 150
