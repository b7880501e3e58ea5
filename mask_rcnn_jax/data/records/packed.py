"""Records in few large arrays: what a dataset of COCO's size costs in memory, once for all processes.

A list of records is millions of small objects, and every worker would get its own copy. Here the annotations of all
images lie end to end in one array a field, and a record is cut out of them when it is asked for.

`N` instances in all, `J` keypoints. A segmentation has parts: its polygons, or one RLE.
"""

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from mask_rcnn_jax.data.records import Federated, Record
from mask_rcnn_jax.data.records.masks import Segmentation
from mask_rcnn_jax.data.records.shards import ShardImage
from mask_rcnn_jax.data.records.shared import CutSequence, SharedArrays

# Types as `array` names them. "first_X" is where each record, instance or part begins in X, and at last X's length.
_RECORD = {"image_id": "q", "height": "i", "width": "i", "source": "i", "federated": "B"}
_RECORD |= {"shards": "i", "shard_index": "q"}  # -1 where the image is a file
_OF_RECORD = {"instance": "", "path": "B", "absent": "i", "not_exhaustive": "i"}
_INSTANCE = {"boxes": "f", "classes": "i", "iscrowd": "B", "areas": "d", "annotation_ids": "q", "is_rle": "B"}
_OF_PART = {"coordinates": "d", "counts": "B"}  # a part has one of them


def pack(records: Iterable[Record]) -> "PackedRecords":
    """The records put end to end, one after the other, so that only one of them need exist at a time."""
    kinds = _RECORD | _OF_RECORD | _INSTANCE | _OF_PART | {"keypoints": "f"}
    kinds |= {f"first_{name}": "q" for name in (*_OF_RECORD, "part", *_OF_PART)}
    columns = {name: array(kind) for name, kind in kinds.items() if kind}
    shards: dict[tuple[str, str], int] = {}
    num_keypoints = 0

    def begin(*names: str) -> None:
        for name in names:
            length = len(columns["classes"]) if name == "instance" else len(columns[name])
            columns[f"first_{name}"].append(length)

    def extend(name: str, values: np.ndarray) -> None:
        columns[name].frombytes(np.asarray(values, columns[name].typecode).tobytes())

    for record in records:
        shard = record.shard
        begin(*_OF_RECORD)
        columns["image_id"].append(record.image_id)
        columns["height"].append(record.height)
        columns["width"].append(record.width)
        columns["source"].append(record.source)
        columns["shards"].append(
            -1 if shard is None else shards.setdefault((shard.directory, shard.split), len(shards))
        )
        columns["shard_index"].append(-1 if shard is None else shard.index)
        columns["federated"].append(record.federated is not None)
        columns["path"].frombytes(os.fsencode(record.path))
        if record.federated is not None:
            extend("absent", record.federated.absent)
            extend("not_exhaustive", record.federated.not_exhaustive)
        for name in ("boxes", "classes", "iscrowd", "areas", "annotation_ids"):
            extend(name, getattr(record, name))
        if record.keypoints is not None:
            extend("keypoints", record.keypoints)
            num_keypoints = record.keypoints.shape[1]
        for segmentation in record.segmentations:
            rle = isinstance(segmentation, dict)
            columns["is_rle"].append(rle)
            columns["first_part"].append(len(columns["first_counts"]))
            for part in [segmentation["counts"]] if rle else segmentation:
                begin(*_OF_PART)
                if rle:
                    columns["counts"].frombytes(bytes(part))
                else:
                    extend("coordinates", part)
    begin(*_OF_RECORD)
    columns["first_part"].append(len(columns["first_counts"]))
    begin(*_OF_PART)
    arrays: dict[str, np.ndarray] = {name: np.frombuffer(column, column.typecode) for name, column in columns.items()}
    arrays["boxes"] = arrays["boxes"].reshape(-1, 4)
    arrays["iscrowd"] = arrays["iscrowd"].view(np.bool_)
    if num_keypoints:
        arrays["keypoints"] = arrays["keypoints"].reshape(-1, num_keypoints, 3)
    return PackedRecords(SharedArrays(arrays), tuple(shards))


class PackedRecords(CutSequence[Record]):
    """Records made by `pack`; each is cut out anew when it is asked for, and its arrays are read-only.

    What `pickle` makes of them is as for `SharedArrays`.
    """

    def __init__(self, shared: SharedArrays, shards: tuple[tuple[str, str], ...]):
        self._shared, self._shards = shared, shards

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """All that the records hold, by field."""
        return self._shared.arrays

    def __len__(self) -> int:
        return len(self.arrays["image_id"])

    def _cut(self, row: int) -> Record:
        a = self.arrays
        start, stop = a["first_instance"][row : row + 2].tolist()
        table = int(a["shards"][row])
        keypoints, path = a["keypoints"], os.fsdecode(self._of_record("path", row).tobytes())
        height, width = int(a["height"][row]), int(a["width"][row])
        federated = None
        if a["federated"][row]:
            federated = Federated(self._of_record("absent", row), self._of_record("not_exhaustive", row))
        return Record(
            image_id=int(a["image_id"][row]),
            path=path,
            height=height,
            width=width,
            boxes=a["boxes"][start:stop],
            classes=a["classes"][start:stop],
            segmentations=_Segmentations(a, start, stop, (height, width)),
            iscrowd=a["iscrowd"][start:stop],
            areas=a["areas"][start:stop],
            annotation_ids=a["annotation_ids"][start:stop],
            keypoints=keypoints[start:stop] if keypoints.ndim == 3 else None,
            federated=federated,
            source=int(a["source"][row]),
            shard=None if table < 0 else ShardImage(*self._shards[table], int(a["shard_index"][row])),
        )

    def _of_record(self, name: str, row: int) -> np.ndarray:
        start, stop = self.arrays[f"first_{name}"][row : row + 2].tolist()
        return self.arrays[name][start:stop]


class _Segmentations(CutSequence[Segmentation]):
    """Those of one record, cut out one by one: most passes over records need none."""

    def __init__(self, arrays: Mapping[str, np.ndarray], start: int, stop: int, size: tuple[int, int]):
        self._arrays, self._rows, self._size = arrays, range(start, stop), size

    def __len__(self) -> int:
        return len(self._rows)

    def _cut(self, row: int) -> Segmentation:
        row = self._rows[row]
        first, end = self._arrays["first_part"][row : row + 2].tolist()
        if self._arrays["is_rle"][row]:
            return {"size": list(self._size), "counts": self._part("counts", first).tobytes()}
        return [self._part("coordinates", part) for part in range(first, end)]

    def _part(self, name: str, part: int) -> np.ndarray:
        start, stop = self._arrays[f"first_{name}"][part : part + 2].tolist()
        return self._arrays[name][start:stop]


class Selection(CutSequence[Record]):
    """Some of `records`, by index, without copying them."""

    def __init__(self, records: Sequence[Record], indices: Int[np.ndarray, " n"]):
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        return len(self.indices)

    def _cut(self, row: int) -> Record:
        return self.records[int(self.indices[row])]
