"""Reading what annotation tools write as JSON and as text."""

from pathlib import Path
from typing import Any

from mask_rcnn_jax.data.records.entries import read_json
from mask_rcnn_jax.disk.files import open_file
from mask_rcnn_jax.errors import UserError


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError with the reason where there is none."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without a byte order mark. Raises ValueError with the reason where it is none."""
    try:
        with open_file(path) as file:
            return file.read().decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ValueError("it does not exist") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None


def one_json_file(folder: Path) -> Path:
    """The JSON file in `folder`. Raises UserError for none and for several."""
    found = sorted(folder.glob("*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:3]) or "none"
        raise UserError(
            f"Folder {folder} must hold one JSON file and holds {len(found)} ({names}); name the file itself."
        )
    return found[0]
