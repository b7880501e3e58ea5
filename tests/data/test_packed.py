"""Packed records are the records that were packed, in this process and in others, at a bounded cost."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn_jax.data.records import Federated, Record
from mask_rcnn_jax.data.records import shared as shared_module
from mask_rcnn_jax.data.records.packed import Selection, pack
from mask_rcnn_jax.data.records.shards import ShardImage
from tests.data.same_records import assert_same_records

LINUX = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc, of Linux")


def made_up_records(count=20, keypoints=0):
    """Records with none to five instances, of polygons and RLEs, of files and shards, federated or not."""
    rng, records = np.random.default_rng(0), []
    for index in range(count):
        n = int(rng.integers(0, 6))
        polygons = [[rng.uniform(0, 100, 2 * rng.integers(3, 9)) for _ in range(rng.integers(1, 4))] for _ in range(n)]
        rle = {"size": [12, 16], "counts": rng.bytes(9)}
        known = [rng.integers(0, 50, rng.integers(0, 4)).astype(np.int32) for _ in range(2)]
        records.append(
            Record(
                image_id=10**12 + index,
                path=f"folder/äö {index}\udcff.jpg",
                height=12,
                width=16,
                boxes=rng.uniform(0, 16, (n, 4)).astype(np.float32),
                classes=rng.integers(0, 80, n).astype(np.int32),
                segmentations=tuple(rle if rng.random() < 0.3 else polygon for polygon in polygons),
                iscrowd=rng.random(n) < 0.5,
                areas=rng.uniform(0, 1e5, n),
                annotation_ids=rng.integers(0, 2**60, n),
                keypoints=rng.uniform(0, 16, (n, keypoints, 3)).astype(np.float32) if keypoints else None,
                federated=Federated(*known) if index % 3 == 0 else None,
                shard=ShardImage("shards", "train", index) if index % 2 else None,
                source=index % 4,
            )
        )
    return records


@pytest.mark.parametrize("keypoints", [0, 5])
def test_packing_changes_nothing(keypoints):
    records = made_up_records(keypoints=keypoints)
    packed = pack(iter(records))
    assert_same_records(packed, records, ignore={"image"})
    assert [record.shard for record in packed] == [record.shard for record in records]
    assert_same_records(packed[2:9:3], records[2:9:3], ignore={"image"})
    assert packed[-1].image_id == packed[np.int64(19)].image_id == records[-1].image_id
    with pytest.raises(IndexError):
        packed[20]


def test_nothing_and_nearly_nothing_can_be_packed():
    assert list(pack([])) == []
    empty = [record for record in made_up_records() if not len(record.boxes)]
    for records in (empty, []):
        packed = pack(records)
        assert_same_records(pickle.loads(pickle.dumps(packed)), records, ignore={"image"})


def test_a_selection_is_a_view():
    records = made_up_records()
    chosen = np.array([3, 3, 17])
    selection = Selection(pack(records), chosen)
    assert_same_records(selection, [records[i] for i in chosen], ignore={"image"})
    assert_same_records(pickle.loads(pickle.dumps(selection))[1:], [records[3], records[17]], ignore={"image"})


def test_records_are_read_only():
    packed = pack(made_up_records())
    for records in (packed, pickle.loads(pickle.dumps(packed))):
        with pytest.raises(ValueError, match="read-only"):
            next(record for record in records if len(record.boxes)).boxes[:] = 0


def test_other_processes_map_the_same_file():
    records = made_up_records(2000, keypoints=5)
    packed = pack(records)
    message = pickle.dumps(packed)
    assert len(message) < 10_000 < sum(record.boxes.nbytes for record in records)
    assert_same_records(packed, records, ignore={"image"})  # after the move to the file as before
    assert_same_records(pickle.loads(message), records, ignore={"image"})
    path = packed._shared._file[0]
    assert path.exists()
    assert len(pickle.dumps({"inside": [Selection(packed, np.arange(5))]})) < 10_000
    code = f"import pickle; print(sum(float(r.boxes.sum()) for r in pickle.loads({message!r})))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(printed) == sum(float(record.boxes.sum()) for record in records)
    del packed
    with pytest.raises(FileNotFoundError):
        pickle.loads(message)


@pytest.mark.parametrize("nameless", [False, pytest.param(True, marks=LINUX)])
def test_the_file_goes_with_the_records(nameless, monkeypatch, tmp_path):
    monkeypatch.setattr(shared_module, "_NAMELESS", nameless)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    records = made_up_records()
    packed = pack(records)
    message = pickle.dumps(packed)
    assert any(tmp_path.iterdir()) != nameless  # what has no name survives no kill either
    assert_same_records(pickle.loads(message), records, ignore={"image"})
    del packed
    assert not any(tmp_path.iterdir())


def test_threads_that_send_the_records_share_one_file():
    packed = pack(made_up_records())
    with ThreadPoolExecutor(4) as pool:
        messages = list(pool.map(lambda _: pickle.dumps(packed), range(16)))
    assert len({*messages}) == 1


def test_a_record_that_was_cut_out_can_be_changed_and_packed_again():
    records = made_up_records()
    packed = pack(records)
    again = pack(replace(record, source=7) for record in packed)
    assert {record.source for record in again} == {7}
    assert_same_records(again, records, ignore={"image", "source"})
