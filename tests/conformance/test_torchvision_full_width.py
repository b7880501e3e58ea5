"""torchvision's v1 and v2 models at full width, on images of different sizes."""

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance import stages, training  # noqa: E402
from tests.conformance.sources import FULL_WIDTH, SOURCES, case  # noqa: E402

pytestmark = pytest.mark.usefixtures("shared")

CASES = [(name, stage) for name in FULL_WIDTH for stage in stages.stages_of(SOURCES[name])]


@pytest.mark.parametrize(("name", "stage"), CASES, ids=[f"{name}: {stage}" for name, stage in CASES])
def test_the_stage_gives_what_the_reference_gives(name: str, stage: str):
    broken = [str(row) for row in stages.STAGES[stage](case(name)) if not row.ok]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", [name for name in FULL_WIDTH if SOURCES[name].trained])
def test_losses_and_gradients_are_those_of_the_reference(name: str):
    broken = [str(row) for row in training.float32_rows(name) if not row.ok]
    assert not broken, "\n".join(broken)
