"""Places that belong to the checkpoints of a run, where nothing else is written, and those that are no folders."""

import os
from pathlib import Path

from mask_rcnn_jax.errors import UserError

_SCHEMES = ("gs:", "gcs:", "s3:", "r2:", "az:", "abfs:", "abfss:", "hdfs:", "http:", "https:")
FOLDER = "checkpoints"  # of a run; each is a folder in it, named by its step


def run_folder(path: Path) -> Path:
    """Return the folder of the run whose checkpoint `path` is; any other path as it is."""
    real = Path(os.path.realpath(path))
    if not _is_checkpoint(real):
        return path
    if path.name == real.name and path.parent.name == FOLDER:
        return path.parent.parent  # as it is spelt
    return real.parent.parent if real.parent.name == FOLDER else real.parent


def latest_step(workdir: Path) -> int | None:
    """Return the step of the latest finished checkpoint of the run in `workdir`, be it whole or not; None without."""
    return max((int(path.name) for path in inside(workdir / FOLDER) if _is_checkpoint(path)), default=None)


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
    return folder.name.isdecimal() and all(os.path.isdir(folder / item) for item in ("model", "metadata"))


def inside(folder: Path) -> list[Path]:
    """Return what lies in a folder, nothing where there is none. Raises `UserError` where it cannot be listed."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error}); mend that") from None
