"""Whole runs of SGD beside torchvision's."""

import pytest

from tests.conformance import needed

needed.torchvision()

from tests.conformance import trajectory  # noqa: E402

pytestmark = [pytest.mark.usefixtures("shared"), pytest.mark.slow]


@pytest.mark.parametrize("name", trajectory.STEPS)
def test_a_run_takes_the_same_course(name: str):
    broken = [str(row) for row in trajectory.rows(name) if not row.ok]
    assert not broken, "\n".join(broken)
