"""Files of proposals: boxes that may hold an object, image by image, whatever proposed them.

Two formats are read, and told apart by their content:

- `.npz`, as `write_proposals` writes it: `image_ids` [I], whole numbers; `counts` [I], the proposals of each image;
  `boxes` [N, 4], (x1, y1, x2, y2) in pixels of the original image as displayed, and `scores` [N], those of the first
  image first, the higher the better.
- Detectron2's and Detectron's pickles: a dict with the lists `boxes` and `objectness_logits` (or `scores`), which have
  an array for each image of `ids` (or `indexes`), and `bbox_mode`, 0 for corners, which are also meant without it, or 1
  for a corner, width and height. Nothing in a pickle is executed.
"""

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_rcnn_jax.arrays.budget import Budget
from mask_rcnn_jax.arrays.npz import read_npy
from mask_rcnn_jax.arrays.pickles import Pickled, read_stream
from mask_rcnn_jax.data.records import BoxProposals
from mask_rcnn_jax.disk.files import is_folder, open_file
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.ranges import shown

_FORMATS = "the .npz of `mask-rcnn propose` and Detectron2's .pkl"
_HARMLESS = "save lists and arrays of NumPy alone"
_SMALLER = "write the proposals again without compression"
_ARRAYS = ("image_ids", "counts", "boxes", "scores")


@dataclass(frozen=True, eq=False)
class ProposalFile:
    """The proposals that a file holds, as they are there."""

    path: Path
    rows: Mapping[int, int]  # by image id
    _pair: Callable[[int], tuple[np.ndarray, np.ndarray]]

    def of_image(self, image_id: int) -> BoxProposals:
        """The proposals of an image of `rows`, in the file's order; they may lie anywhere and be no numbers.

        Raises `UserError` where they are no boxes with a score each.
        """
        with _damage(self.path):
            boxes, scores = self._pair(self.rows[image_id])
            boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
            if {boxes.dtype.kind, scores.dtype.kind} <= set("fiu") and boxes.shape == (scores.size, 4):
                # What no float32 holds is infinite then, and left out as such.
                with np.errstate(over="ignore", invalid="ignore"):
                    return BoxProposals(boxes.astype(np.float32), scores.astype(np.float32).reshape(-1))
        raise UserError(
            f"{self.path} has boxes {boxes.dtype} {list(boxes.shape)} and scores {scores.dtype} {list(scores.shape)} of"
            f" image {image_id}; give numbers, four and one for each proposal"
        )


def read_proposals(path: str | Path) -> ProposalFile:
    """Read a file of proposals.

    Raises `UserError` for what is missing, damaged, of another format, would run code, or has an image twice.
    """
    path = Path(path)
    if is_folder(path):
        raise UserError(f"{path} is a folder, not a file of proposals")
    try:
        with open_file(path) as file, _damage(path):
            ids, pair = _read(file, path)
            rows = {_whole(image_id, path): row for row, image_id in enumerate(ids)}
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file of proposals") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(rows) < len(ids):
        raise UserError(f"{path} has the proposals of an image twice; write those of each image once")
    return ProposalFile(path, rows, pair)


def write_proposals(file: BinaryIO, proposals: Iterable[tuple[int, BoxProposals]]) -> None:
    """Write the proposals of images, given with their ids, as an `.npz`."""
    pairs = list(proposals)
    ids, counts = [image_id for image_id, _ in pairs], [len(found.boxes) for _, found in pairs]
    boxes = np.concatenate([np.zeros((0, 4)), *(found.boxes for _, found in pairs)], dtype=np.float32)
    scores = np.concatenate([np.zeros(0), *(found.scores for _, found in pairs)], dtype=np.float32)
    values = (np.array(ids, np.int64), np.array(counts, np.int64), boxes, scores)
    np.savez(file, **dict(zip(_ARRAYS, values, strict=True)))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Say of whatever fails in a file that is damaged, in one library or another, that it is."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} is damaged or was not written to its end ({problem}); write or fetch it again"
        ) from None


def _read(file: BinaryIO, path: Path) -> tuple[list[Any], Callable[[int], tuple[np.ndarray, np.ndarray]]]:
    """The ids in a file, and what gives the boxes and the scores at the place of each."""
    budget = Budget(path, os.fstat(file.fileno()).st_size, _SMALLER)
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
        return _read_npz(file, path, budget)
    if start[:1] == b"\x80":
        return _read_pickle(file, path, budget)
    raise UserError(f"{path} is no file of proposals that can be read, which are {_FORMATS}")


def _read_npz(
    file: BinaryIO, path: Path, budget: Budget
) -> tuple[list[Any], Callable[[int], tuple[np.ndarray, np.ndarray]]]:
    with zipfile.ZipFile(file) as archive:
        budget.check(sum(member.file_size for member in archive.infolist()))
        if lacking := [name for name in _ARRAYS if f"{name}.npy" not in archive.namelist()]:
            raise UserError(f"{path} lacks {', '.join(lacking)}; an .npz of proposals has {', '.join(_ARRAYS)}")
        ids, counts, boxes, scores = (read_npy(archive, f"{name}.npy") for name in _ARRAYS)
    are_counts = counts.dtype.kind in "iu" and counts.ndim == 1
    counts = counts.astype(np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if ends.size else 0
    if not are_counts or ids.shape != counts.shape or (counts < 0).any() or {len(boxes), len(scores)} != {total}:
        raise UserError(
            f"{path} has image_ids {list(ids.shape)}, counts {list(counts.shape)} that add up to {total}, boxes"
            f" {list(boxes.shape)} and scores {list(scores.shape)}, which do not belong together; write it again"
        )

    def pair(row: int) -> tuple[np.ndarray, np.ndarray]:
        of_image = slice(int(ends[row] - counts[row]), int(ends[row]))
        return boxes[of_image], scores[of_image]

    return ids.tolist(), pair


def _read_pickle(
    file: BinaryIO, path: Path, budget: Budget
) -> tuple[list[Any], Callable[[int], tuple[np.ndarray, np.ndarray]]]:
    tree = read_stream(file, str(path), _HARMLESS)

    def array(value: Any) -> Any:
        if isinstance(value, Pickled):
            budget.check(value.nbytes)
            return value.array()
        return value

    def numbers(value: Any, width: int) -> np.ndarray:
        """An array, or the numbers of a list, of lists of `width` where that is not 0."""
        if isinstance(value, Pickled):
            return array(value)
        # A list may hold one and the same list many times over: it is small in the file.
        if not isinstance(value, list | tuple):
            raise ValueError(f"{shown(value)} is no list of numbers")
        budget.check(8 * len(value) * max(width, 1))
        rows = value if width else [value]
        if not all(isinstance(row, list | tuple) and len(row) in (width or len(row),) for row in rows):
            raise ValueError(f"its items are no lists of {width} numbers")
        if not all(type(number) in (int, float) for row in rows for number in row):
            raise ValueError("its items are no numbers")
        return np.array(value, np.float64)

    def listed(*names: str) -> list[Any]:
        name = next((name for name in names if isinstance(tree, Mapping) and name in tree), None)
        if name is None:
            raise UserError(f"{path} lacks {' or '.join(names)}; a pickle of proposals has boxes, scores and ids")
        return list(array(tree[name]))

    ids, boxes = [array(value) for value in listed("ids", "indexes")], listed("boxes")
    scores, mode = listed("objectness_logits", "scores"), array(tree.get("bbox_mode", 0))
    if not len(ids) == len(boxes) == len(scores):
        raise UserError(f"{path} has {len(boxes)} boxes and {len(scores)} scores of {len(ids)} images; write it again")
    if mode not in (0, 1):
        raise UserError(f"{path} has boxes in the form bbox_mode {shown(mode)}; write them as corners, bbox_mode 0")

    def pair(row: int) -> tuple[np.ndarray, np.ndarray]:
        corners = numbers(boxes[row], 4)
        if mode == 1 and corners.ndim == 2:
            corners = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
        return corners, numbers(scores[row], 0).reshape(-1)

    return ids, pair


def _whole(image_id: Any, path: Path) -> int:
    """The id, which Detectron2 also writes as text."""
    if isinstance(image_id, np.ndarray | np.generic) and image_id.size == 1:
        image_id = image_id.item()
    text = str(image_id) if isinstance(image_id, int | str) else ""
    if not text.removeprefix("-").isdecimal() or len(text) > 20:
        raise UserError(f"{path} has the image id {shown(image_id)}, which is no whole number; write the dataset's ids")
    return int(text)
