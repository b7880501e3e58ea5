"""Real annotations written in other formats come back as they were."""

import json

import numpy as np
import pytest

from mask_rcnn_jax.data import CocoConfig, load_coco
from tests.data.convert.known import convert, iou, load, masks, write_json, write_mask


@pytest.fixture
def balloon(shared):
    return load_coco(CocoConfig(str(shared / "data" / "balloon")), "val")


def write_labelme(folder, records):
    for record in records:
        shapes = [
            {"label": "balloon", "points": part.reshape(-1, 2).tolist(), "group_id": index, "shape_type": "polygon"}
            for index, parts in enumerate(record.segmentations)
            for part in parts
        ]
        name = record.path.rpartition("/")[2]
        write_json(folder / f"{name}.json", {"imagePath": record.path, "imageData": None, "shapes": shapes})
    return folder


def write_via(folder, records):
    content = {}
    for record in records:
        shapes = [
            {"name": "polygon", "all_points_x": p[0][::2].tolist(), "all_points_y": p[0][1::2].tolist()}
            for p in record.segmentations
        ]
        regions = [{"shape_attributes": shape, "region_attributes": {"class": "balloon"}} for shape in shapes]
        content[record.path] = {"filename": record.path, "size": -1, "regions": regions}
    return write_json(folder / "via.json", content)


def write_yolo(folder, records):
    for record in records:
        lines = [
            " ".join(["0", *(f"{x / record.width:.6f} {y / record.height:.6f}" for x, y in part.reshape(-1, 2))])
            for (part,) in record.segmentations
        ]
        name = record.path.rpartition("/")[2]
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "images" / name).symlink_to(record.path)
        (folder / "labels" / name).with_suffix(".txt").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("balloon")
    return folder


@pytest.mark.parametrize(("format_", "write"), [("labelme", write_labelme), ("via", write_via), ("yolo", write_yolo)])
def test_balloons(balloon, tmp_path, format_, write):
    assert all(len(parts) == 1 for record in balloon.records for parts in record.segmentations)
    source = write(tmp_path / "in", balloon.records)
    assert convert(format_, source, "--out", tmp_path / "out") == 0
    converted = {record.path.rpartition("/")[2]: record for record in load(tmp_path / "out").records}
    for record in balloon.records:
        found = converted[record.path.rpartition("/")[2]]
        np.testing.assert_allclose(found.boxes, record.boxes, atol=2e-3)
        for first, second in zip(masks(found), masks(record), strict=True):
            assert iou(first, second) == 1 if format_ != "yolo" else iou(first, second) > 0.99


def test_nuclei(shared, tmp_path):
    """Masks of nuclei, painted as numbers, come back run for run; those of one image are numbered beyond 255."""
    root = shared / "data" / "nuclei"
    original = load_coco(CocoConfig(str(root)), "train")
    records = [*list(original.records)[:4], max(original.records, key=lambda record: len(record.boxes))]
    for record in records:
        ids = np.zeros((record.height, record.width), np.uint16)
        for number, mask in enumerate(masks(record), 1):
            assert not ids[mask].any()
            ids[mask] = number
        name = record.path.rpartition("/")[2]
        write_mask(tmp_path / "in" / "masks" / name, ids)
        (tmp_path / "in" / "images").mkdir(exist_ok=True)
        (tmp_path / "in" / "images" / name).symlink_to(record.path)
    assert convert("id-masks", tmp_path / "in", "--out", tmp_path / "out", "--class-name", "nucleus") == 0
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    stated = json.loads((root / "annotations" / "instances_train.json").read_text())
    by_id = {annotation["id"]: annotation for annotation in stated["annotations"]}
    converted = iter(content["annotations"])
    for record in sorted(records, key=lambda record: record.path):
        for annotation_id in record.annotation_ids.tolist():
            found, expected = next(converted), by_id[annotation_id]
            for key in ("segmentation", "bbox", "area"):
                assert found[key] == expected[key]
    assert next(converted, None) is None
