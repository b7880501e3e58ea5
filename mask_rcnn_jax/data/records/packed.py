"""Records in few large arrays: what a dataset of COCO's size costs in memory, once for all processes.

A list of records is millions of small objects, and every worker would get its own copy. Here the annotations of all
images lie end to end in one array a field, and a record is cut out of them when it is asked for. Sent to another
process, the arrays go to a file without a name that all processes map, so that they share its pages.

`N` instances in all, `J` keypoints. A segmentation has parts: its polygons, or one RLE.
"""

import os
import tempfile
import threading
import weakref
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np
from jaxtyping import Int

from mask_rcnn_jax.data.records import Federated, Record
from mask_rcnn_jax.data.records.masks import Segmentation
from mask_rcnn_jax.data.records.shards import ShardImage

Item = TypeVar("Item")

_Layout = dict[str, tuple[str, tuple[int, ...], int]]  # name -> type, shape, and offset in bytes

# Types as `array` names them. "first_X" is where each record, instance or part begins in X, and at last X's length.
_RECORD = {"image_id": "q", "height": "i", "width": "i", "source": "i", "federated": "B"}
_RECORD |= {"shards": "i", "shard_index": "q"}  # -1 where the image is a file
_OF_RECORD = {"instance": "", "path": "B", "absent": "i", "not_exhaustive": "i"}
_INSTANCE = {"boxes": "f", "classes": "i", "iscrowd": "B", "areas": "d", "annotation_ids": "q", "is_rle": "B"}
_OF_PART = {"coordinates": "d", "counts": "B"}  # a part has one of them
_ALIGNMENT = 64  # bytes, of every array in the file
_MOVING = threading.Lock()
_NAMELESS = os.path.isdir("/proc/self/fd")


class _CutSequence(Sequence[Item]):
    """A sequence whose items are made by `_cut` when they are asked for; a slice makes a tuple of them."""

    def _cut(self, row: int) -> Item:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: SupportsIndex) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Item | Sequence[Item]:
        rows = range(len(self))[index]
        return tuple(map(self._cut, rows)) if isinstance(rows, range) else self._cut(rows)


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
    return PackedRecords(arrays, tuple(shards))


class PackedRecords(_CutSequence[Record]):
    """Records made by `pack`; each is cut out anew when it is asked for, and its arrays are read-only.

    What `pickle` makes of them refers to an open file of this process: other processes of the machine can read it as
    long as the object that was pickled exists.
    """

    def __init__(self, arrays: dict[str, np.ndarray], shards: tuple[tuple[str, str], ...]):
        self._arrays, self._shards = arrays, shards
        for values in arrays.values():
            values.flags.writeable = False
        self._file: tuple[Path, _Layout] | None = None

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """All that the records hold, by field."""
        return self._arrays

    def __len__(self) -> int:
        return len(self._arrays["image_id"])

    def _cut(self, row: int) -> Record:
        a = self._arrays
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
        start, stop = self._arrays[f"first_{name}"][row : row + 2].tolist()
        return self._arrays[name][start:stop]

    def __reduce__(self) -> tuple[Any, ...]:
        with _MOVING:  # workers are started, and so sent the records, from threads of their own
            if self._file is None:
                self._move_to_file()
        return _mapped, (*self._file, self._shards)  # type: ignore[misc]  # set by the line above

    def _move_to_file(self) -> None:
        """Writes the arrays to a file that goes with this object, and maps them from there."""
        # Without a name nothing is left of it, however the process ends; only Linux can open such a file again.
        open_file: Any = tempfile.TemporaryFile if _NAMELESS else tempfile.NamedTemporaryFile
        file = open_file(prefix="mask_rcnn_jax-")
        path = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}" if _NAMELESS else file.name)
        weakref.finalize(self, file.close)
        layout, offset = {}, 0
        for name, values in self._arrays.items():
            layout[name] = (values.dtype.str, values.shape, offset)
            file.write(values.tobytes())
            offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
            file.write(bytes(offset - file.tell()))
        file.flush()
        self._file = path, layout
        self._arrays = _mapped_arrays(path, layout)


def _mapped(path: Path, layout: _Layout, shards: tuple[tuple[str, str], ...]) -> PackedRecords:
    records = PackedRecords(_mapped_arrays(path, layout), shards)
    records._file = path, layout
    return records


def _mapped_arrays(path: Path, layout: _Layout) -> dict[str, np.ndarray]:
    whole = np.asarray(np.memmap(path, np.uint8, "r"))
    return {
        name: np.ndarray(shape, kind, whole[offset:].data) if 0 not in shape else np.zeros(shape, kind)
        for name, (kind, shape, offset) in layout.items()
    }


class _Segmentations(_CutSequence[Segmentation]):
    """Those of one record, cut out one by one: most passes over records need none."""

    def __init__(self, arrays: dict[str, np.ndarray], start: int, stop: int, size: tuple[int, int]):
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


class Selection(_CutSequence[Record]):
    """Some of `records`, by index, without copying them."""

    def __init__(self, records: Sequence[Record], indices: Int[np.ndarray, " n"]):
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        return len(self.indices)

    def _cut(self, row: int) -> Record:
        return self.records[int(self.indices[row])]
