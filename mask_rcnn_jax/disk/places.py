"""Places that belong to the checkpoints of a run, where nothing else is written, and those that are no folders."""

import os
import re
from pathlib import Path

from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.errors import UserError

_SCHEMES = ("gs:", "gcs:", "s3:", "r2:", "az:", "abfs:", "abfss:", "hdfs:", "http:", "https:")
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of what is being written
FOLDER = "checkpoints"  # of a run; each is a folder in it, named by its step
_LAST_STEP = 2**31 - 1  # steps are counted in int32


def run_folder(path: Path) -> Path:
    """Return the folder of the run whose checkpoint `path` is; any other path as it is."""
    real = Path(os.path.realpath(path))
    if not _is_checkpoint(real):
        return path
    if path.name == real.name and path.parent.name == FOLDER:
        return path.parent.parent  # as it is spelt
    return real.parent.parent if real.parent.name == FOLDER else real.parent


def latest_step(workdir: Path) -> int | None:
    """Return the step of the latest finished checkpoint of the run in `workdir`, be it whole or not; None without.

    Raises as `checkpoints_in` does.
    """
    found = checkpoints_in(workdir / FOLDER)
    return max((step for step, path in found.items() if _is_checkpoint(path)), default=None)


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Return the finished checkpoints in the folder of a run's checkpoints by step; some may lack what belongs to them.

    Raises `UserError` where the folder cannot be listed, and where a name in it is a number but not one that steps are
    written as: what is stored under it would be passed over.
    """
    found: dict[int, Path] = {}
    for path in inside(folder):
        if (step := step_of(path.name)) is not None:
            found[step] = path
        elif path.name.strip().isdecimal():
            raise UserError(
                f"{path} is not named as the checkpoint of a step is, such as 0 or 100; rename it, or move it out of"
                f" {folder}"
            )
    return found


def finished_steps(folder: Path) -> list[int]:
    """Return the steps of the finished checkpoints in the folder of a run's checkpoints, in order.

    Raises as `checkpoints_in` does, and OSError where the disk does not say: a checkpoint must not be passed over.
    """
    return sorted(step for step, path in checkpoints_in(folder).items() if is_folder(path))


def is_unfinished(path: Path) -> bool:
    """Return True for what is left among checkpoints of one that was being written when its process was killed."""
    return UNFINISHED in path.name


def step_of(name: str) -> int | None:
    """Return the step whose checkpoint has this name, None where none has."""
    step = int(name) if re.fullmatch("0|[1-9][0-9]{0,9}", name) else None
    return step if step is None or step <= _LAST_STEP else None


def check_place(option: str, path: Path) -> None:
    """Raise `UserError` where `path`, the value of `option`, is a URL, is a checkpoint or lies among checkpoints."""
    # A `Path` of gs://bucket/run is the folder "gs:" where the command runs.
    if (scheme := path.parts[0] if path.parts else "") in _SCHEMES:
        raise UserError(
            f"{option} {scheme}//{'/'.join(path.parts[1:])} is a URL, and only folders can be written; mount the bucket"
            " and name a folder in it"
        )
    real = Path(os.path.realpath(path))
    for folder in (real, *real.parents):
        if _is_checkpoint(folder) or (folder.name == FOLDER and any(map(_is_checkpoint, inside(folder)))):
            raise UserError(
                f"{option} {path} lies in {folder}, which belongs to a run's checkpoints and is deleted with them; name"
                " another place"
            )


def _is_checkpoint(folder: Path) -> bool:
    return folder.name.isdecimal() and all(is_folder(folder / item) for item in ("model", "metadata"))


def inside(folder: Path) -> list[Path]:
    """Return what lies in a folder, nothing where there is none. Raises `UserError` where it cannot be listed."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error}); mend that") from None
