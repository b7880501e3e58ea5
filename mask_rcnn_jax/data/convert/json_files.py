"""Reading what annotation tools write as JSON."""

import json
from pathlib import Path
from typing import Any

from mask_rcnn_jax.errors import UserError


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError with the reason where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(error.strerror) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def one_json_file(folder: Path) -> Path:
    """The JSON file in `folder`. Raises UserError for none and for several."""
    found = sorted(folder.glob("*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:3]) or "none"
        raise UserError(
            f"Folder {folder} must hold one JSON file and holds {len(found)} ({names}); name the file itself."
        )
    return found[0]
