"""Places that belong to the checkpoints of a run, where nothing else is written."""

import os
from pathlib import Path

from mask_rcnn_jax.errors import UserError

FOLDER = "checkpoints"  # of a run; each is a folder in it, named by its step


def run_folder(path: Path) -> Path:
    """Return the folder of the run whose checkpoint `path` is; any other path as it is."""
    real = Path(os.path.realpath(path))
    if not _is_checkpoint(real):
        return path
    if path.name == real.name and path.parent.name == FOLDER:
        return path.parent.parent  # as it is spelt
    return real.parent.parent if real.parent.name == FOLDER else real.parent


def refuse_checkpoint(option: str, path: Path) -> None:
    """Raise `UserError` where `path`, the value of `option`, is a checkpoint or lies among checkpoints."""
    real = Path(os.path.realpath(path))
    for folder in (real, *real.parents):
        if _is_checkpoint(folder) or (folder.name == FOLDER and any(map(_is_checkpoint, _inside(folder)))):
            raise UserError(
                f"{option} {path} lies in {folder}, which belongs to a run's checkpoints and is deleted with them; name"
                " another place"
            )


def _is_checkpoint(folder: Path) -> bool:
    return folder.name.isdecimal() and all(os.path.isdir(folder / item) for item in ("model", "metadata"))


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if os.path.isdir(folder) else []
