from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mask_rcnn_jax.data import CocoConfig, CocoDataset, ShapesConfig
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.visualize import write_pictures


def shapes(folder: Path, count: int) -> CocoDataset:
    source = ShapesConfig(root=str(folder / "shapes"), num_train=1, num_val=count, image_size=64)
    source.prepare()
    return source.load("val")


def test_pictures_of_a_dataset(tmp_path) -> None:
    dataset = shapes(tmp_path, 5)
    results = []
    for record in dataset.records:
        for box, label in zip(record.boxes.tolist(), record.classes, strict=True):
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            entry = {"image_id": record.image_id, "category_id": dataset.categories[label], "bbox": sides}
            results += [entry | {"score": 0.9}, entry | {"score": 0.3}]
    paths = write_pictures(dataset, results, OutputFolder(tmp_path), count=3)
    ends = dataset.records[0], dataset.records[-1]
    assert len(set(paths)) == 3
    assert [paths[0].name.split("_")[0], paths[-1].name.split("_")[0]] == [str(record.image_id) for record in ends]
    for path in paths:
        picture = np.asarray(Image.open(path))
        assert picture.shape[1] > 2 * 480
        # Truth is tinted, and these detections have no masks.
        assert (picture[-400:, :480] != picture[-400:, -480:]).any()
    # What scores too little is not drawn.
    drawn = [path.read_bytes() for path in paths]
    certain = [result for result in results if result["score"] > 0.5]
    assert drawn == [p.read_bytes() for p in write_pictures(dataset, certain, OutputFolder(tmp_path), count=3)]
    # Those of an earlier evaluation do not stay beside this one's, but what others put there does.
    (tmp_path / "pictures" / "mine.png").write_text("kept")
    (path,) = write_pictures(dataset, certain, OutputFolder(tmp_path), count=1)
    assert {file.name for file in path.parent.iterdir()} == {path.name, "mine.png"}


def test_pictures_of_keypoints(shared, tmp_path) -> None:
    dataset = CocoConfig(str(shared / "data" / "coco_person_kp")).load("val")
    record = next(r for r in dataset.records if r.keypoints is not None and (r.keypoints[..., 2] > 0).all())
    assert record.keypoints is not None
    dataset = replace(dataset, records=(record,))
    boxes = record.boxes - np.concatenate([np.zeros_like(record.boxes[:, :2]), record.boxes[:, :2]], axis=1)
    results = [{"image_id": record.image_id, "category_id": 1, "score": 0.9, "bbox": box} for box in boxes.tolist()]
    drawn = []
    for score in (None, 0.01, 0.5):
        if score is not None:
            for result, keypoints in zip(results, record.keypoints, strict=True):
                result["keypoints"] = (keypoints * [1, 1, 0] + [-0.5, -0.5, score]).ravel().tolist()
        (path,) = write_pictures(dataset, results, OutputFolder(tmp_path))
        drawn.append(np.asarray(Image.open(path)).astype(int))
    without, unsure, sure = drawn
    np.testing.assert_array_equal(without, unsure)
    x, y = record.keypoints[0, 0, :2].astype(int)
    bar, right = sure.shape[0] - record.height, sure.shape[1] - record.width
    changed = (sure != unsure).any(axis=-1)
    assert changed[bar + y, right + x]
    assert not changed[:, : record.width].any()  # the ground truth is what it was
    # An annotation file of other keypoints has no say in what is joined.
    others = replace(dataset, keypoint_names=("a",), skeleton=((0, 0),))
    (path,) = write_pictures(others, results, OutputFolder(tmp_path))
    assert (np.asarray(Image.open(path))[:, right:] != sure[:, right:]).any()


def test_more_pictures_than_images_and_none(tmp_path) -> None:
    dataset = shapes(tmp_path, 2)
    assert len(write_pictures(dataset, [], OutputFolder(tmp_path / "all"), count=9)) == 2
    assert write_pictures(dataset, [], OutputFolder(tmp_path / "none"), count=0) == []
