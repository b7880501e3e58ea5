"""torchvision's v1 and v2 models at full width, on images of different sizes."""

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance import stages, training  # noqa: E402
from tests.conformance.sources import FULL_WIDTH, SOURCES, case  # noqa: E402

# The narrow ones show the same in a fraction of the time.
pytestmark = [pytest.mark.usefixtures("shared"), pytest.mark.slow]

CASES = [
    pytest.param(name, stage, id=f"{name}: {stage}") for name in FULL_WIDTH for stage in stages.stages_of(SOURCES[name])
]


@pytest.mark.parametrize(("name", "stage"), CASES)
def test_the_stage_gives_what_the_reference_gives(name: str, stage: str):
    broken = [str(row) for row in stages.STAGES[stage](case(name)) if not row.ok]
    assert not broken, "\n".join(broken)


TRAINED = [(name, dtype) for name in FULL_WIDTH for dtype in SOURCES[name].trained]


@pytest.mark.parametrize(("name", "dtype"), TRAINED)
def test_losses_and_gradients_are_those_of_the_reference(name: str, dtype: str):
    broken = [str(row) for row in training.rows_in(name, dtype) if not row.ok]
    assert not broken, "\n".join(broken)
