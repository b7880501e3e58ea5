"""The losses of boxes are those of the references."""

from pathlib import Path
from types import ModuleType

from tests.conformance import box_losses


def test_they_are_detectron2s(shared: Path):
    rows = list(box_losses.detectron2_rows(shared))
    assert len(rows) == 2 * (6 + 3)
    assert not [str(row) for row in rows if not row.ok]


def test_they_are_torchvisions(torchvision: ModuleType):
    rows = list(box_losses.torchvision_rows())
    assert len(rows) == 2 * 3
    assert not [str(row) for row in rows if not row.ok]
