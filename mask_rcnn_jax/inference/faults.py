"""Messages about checkpoints that cannot be read: one sentence per cause."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mask_rcnn_jax.config import UnknownClass
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.stored import Damaged, Unfamiliar, disk_error


@contextmanager
def fitting(checkpoint: Path) -> Iterator[None]:
    """Says of a configuration that cannot be loaded which checkpoint has it."""
    try:
        yield
    except UnknownClass as error:
        raise UserError(f"{checkpoint}: {error}") from None
    except UserError as error:
        raise UserError(
            f"{checkpoint} is of another version: {error}; load it with the version that wrote it"
        ) from None


@contextmanager
def familiar(checkpoint: Path) -> Iterator[None]:
    """Says of a checkpoint with a layout that this version does not know that it has one."""
    try:
        yield
    except Unfamiliar as error:
        raise UserError(
            f"{checkpoint} has a layout that this version does not know ({error}); read it with the packages that wrote"
            " it, or move it away where it is damaged"
        ) from error


@contextmanager
def whole(checkpoint: Path) -> Iterator[None]:
    """Says of a checkpoint that cannot be read that it is damaged, or has a layout that is not known."""
    try:
        with familiar(checkpoint):
            yield
    except Damaged as error:
        raise damaged(checkpoint, error) from error


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Says of a disk that fails that it does; nothing is known then of what it holds."""
    try:
        yield
    except (UserError, Damaged, Unfamiliar):
        raise
    except Exception as error:  # Orbax raises a plain one, with the system's reason in its text
        if (fault := disk_error(error)) is None:
            raise
        raise UserError(f"{path} cannot be read ({fault.strerror or fault}); mend that, and try again") from error


def damaged(checkpoint: Path, error: Exception) -> UserError:
    return UserError(f"{checkpoint} is damaged or half copied ({error}); copy it again, or take another checkpoint")
