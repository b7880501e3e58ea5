import numpy as np
from PIL import Image

from mask_rcnn_jax.data import ShapesConfig, load_coco
from mask_rcnn_jax.visualize import write_pictures


def test_pictures_of_a_dataset(tmp_path) -> None:
    dataset = load_coco(ShapesConfig(root=str(tmp_path / "shapes"), num_train=1, num_val=5, image_size=64), "val")
    results = []
    for record in dataset.records:
        for box, label in zip(record.boxes.tolist(), record.classes, strict=True):
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            entry = {"image_id": record.image_id, "category_id": dataset.categories[label], "bbox": sides}
            results += [entry | {"score": 0.9}, entry | {"score": 0.3}]
    paths = write_pictures(dataset, results, tmp_path / "pictures", count=3)
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
    assert drawn == [p.read_bytes() for p in write_pictures(dataset, certain, tmp_path / "pictures", count=3)]


def test_more_pictures_than_images_and_none(tmp_path) -> None:
    dataset = load_coco(ShapesConfig(root=str(tmp_path / "shapes"), num_train=1, num_val=2, image_size=64), "val")
    assert len(write_pictures(dataset, [], tmp_path / "all", count=9)) == 2
    assert write_pictures(dataset, [], tmp_path / "none", count=0) == []
