"""A dataset's fingerprint: the same for the same annotations of the same images, wherever they lie."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mask_rcnn_jax.data.records import CocoDataset, Record
from mask_rcnn_jax.data.records.packed import PackedRecords, Selection, pack
from mask_rcnn_jax.data.records.proposed import LabelledRecords, ProposedRecords

# Arrays that say where the images and their labels lie.
_PLACES = {"path", "first_path", "shards", "names", "first_name"}


def fingerprint(dataset: CocoDataset, with_proposals: bool = True) -> str:
    """sha256 over classes, keypoints and records: names, sizes, boxes, classes, segmentations and all else they hold.

    Names of images are taken below the folder that all of them lie in, in a mixture all of one source. Pixels are not
    looked at.
    """
    digest = hashlib.sha256()
    of_dataset = (dataset.class_names, dataset.categories, dataset.keypoint_names, dataset.weights, dataset.boxes_only)
    digest.update(json.dumps(of_dataset).encode())
    if dataset.stuff_names:
        digest.update(json.dumps((dataset.stuff_names, dataset.stuff_categories)).encode())
    records, rows = dataset.records, np.arange(len(dataset.records))
    while isinstance(records, Selection | ProposedRecords | LabelledRecords):
        if isinstance(records, ProposedRecords) and with_proposals:
            _update(digest, "proposals/", records.shared.arrays)
        if isinstance(records, LabelledRecords):
            _update(digest, "semantic/", _without_places(records.shared.arrays))
        if isinstance(records, Selection):
            rows = records.indices[rows]
        records = records.records
    if not isinstance(records, PackedRecords):
        records = pack(records)
    _update(digest, "", _without_places(records.arrays))
    digest.update(rows.astype("<i8").tobytes())
    digest.update(b"\0".join(_names(records, rows)))
    return digest.hexdigest()


def _without_places(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in arrays.items() if name not in _PLACES}


def _update(digest: Any, prefix: str, arrays: Mapping[str, np.ndarray]) -> None:
    for name, values in sorted(arrays.items()):
        digest.update(f"{prefix}{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).data)


def _names(records: Sequence[Record], rows: np.ndarray) -> list[bytes]:
    """The images' paths without the part that all of a source have in common."""
    places = [(record.source, record.path) for record in (records[int(row)] for row in rows)]
    folders: dict[int, int] = {}
    for source in {source for source, _ in places}:
        paths = [path for of_source, path in places if of_source == source]
        prefix = os.path.commonprefix(paths)  # noqa: RUF071  cut back to a whole folder in the next line
        folders[source] = prefix.rfind("/") + 1
    return [os.fsencode(path[folders[source] :]) for source, path in places]
