"""The synthetic set: deterministic, correctly annotated, never written over something else."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data import MixtureConfig, ShapesConfig, verify_images
from mask_rcnn_jax.data.records import masks
from mask_rcnn_jax.data.semantic.labels import read_kinds, read_numbers
from mask_rcnn_jax.data.sources.shapes import CLASS_NAMES, TEXTURES, draw_shapes, write_shapes
from mask_rcnn_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode

CONFIG = ShapesConfig(num_train=12, num_val=3)


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_same_settings_give_the_same_bytes(tmp_path):
    write_shapes(CONFIG, tmp_path / "a")
    write_shapes(replace(CONFIG, root="elsewhere"), tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    write_shapes(replace(CONFIG, seed=1), tmp_path / "c")
    assert files(tmp_path / "a")["train/000000.png"] != files(tmp_path / "c")["train/000000.png"]


def test_reads_without_problems(tmp_path):
    config = replace(CONFIG, root=str(tmp_path / "shapes"))
    config.prepare()
    dataset = config.load(config.train_split)
    verify_images(dataset)
    assert len(dataset.records) == 12
    assert len(config.load(config.val_split).records) == 3
    assert dataset.class_names == CLASS_NAMES
    assert not dataset.problems


def test_what_is_there_stays(tmp_path):
    config = replace(CONFIG, root=str(tmp_path / "shapes"))
    (tmp_path / "shapes").mkdir()
    config.prepare()
    before = files(tmp_path)
    stamp = (tmp_path / "shapes" / "shapes.json").stat().st_mtime_ns
    config.prepare()
    assert (tmp_path / "shapes" / "shapes.json").stat().st_mtime_ns == stamp  # not written again
    (tmp_path / "shapes" / "mine.jpg").write_text("precious")
    for use in (ShapesConfig.prepare, lambda source: source.load("train")):
        with pytest.raises(UserError, match=r"shapes holds synthetic shapes of other settings; .*data\.source\.root"):
            use(replace(config, seed=5))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("precious")
    with pytest.raises(UserError, match=r"photos holds no synthetic shapes; .*data\.source\.root"):
        replace(config, root=str(tmp_path / "photos")).prepare()
    with pytest.raises(UserError, match=r"mine\.jpg/shapes cannot be written \(.*\); set data\.source\.root"):
        replace(config, root=str(tmp_path / "photos" / "mine.jpg" / "shapes")).prepare()
    assert files(tmp_path) == before | {name: b"precious" for name in ("shapes/mine.jpg", "photos/mine.jpg")}


def test_another_process_may_be_first(tmp_path, monkeypatch):
    config = replace(CONFIG, root=str(tmp_path / "shapes"))
    rename = os.rename

    def late(source, target):
        write_shapes(config, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    config.prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.parametrize("mixed", [False, True])
def test_reading_writes_nothing(tmp_path, mixed):
    config = replace(CONFIG, root=str(tmp_path / "shapes"))
    source = MixtureConfig((config, config)) if mixed else config
    for use in (
        lambda source: source.check_prepared(),
        lambda source: source.load("train"),
        lambda source: source.load("val"),
    ):
        with pytest.raises(UserError, match=r"shapes holds no synthetic shapes, which only .*data\.source\.root"):
            use(source)
    assert not list(tmp_path.iterdir())
    source.prepare()
    source.check_prepared()


def test_annotations_describe_visible_parts(tmp_path):
    """Masks do not overlap, lie in their boxes, have the stated area; polygons and RLE both occur; all classes do."""
    kinds, classes = set(), set()
    for index in range(60):
        image, annotations, *_ = draw_shapes(CONFIG, np.random.default_rng(index))
        assert image.shape == (128, 128, 3)
        assert 1 <= len(annotations) <= CONFIG.max_shapes
        total = np.zeros((128, 128))
        for annotation in annotations:
            segmentation = annotation["segmentation"]
            kinds.add(type(segmentation))
            classes.add(annotation["category_id"])
            polygons = isinstance(segmentation, list)
            rle = masks.to_rle([np.array(p) for p in segmentation], 128, 128) if polygons else segmentation
            bitmap = coco_mask.decode(rle)
            assert bitmap.sum() == pytest.approx(annotation["area"], rel=0.08, abs=4)
            x, y, w, h = annotation["bbox"]
            inside = bitmap[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1]
            assert inside.sum() == bitmap.sum()
            total += bitmap
        assert (total > 1).mean() < 0.003  # antialiased edges of polygons may share a pixel
    assert kinds == {list, dict}
    assert classes == set(range(1, len(CLASS_NAMES) + 1))


def test_ids_are_unique(tmp_path):
    write_shapes(CONFIG, tmp_path / "a")
    content = json.loads((tmp_path / "a" / "annotations" / "instances_train.json").read_text())
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert len(set(ids)) == len(ids)


def test_thin_shapes_cover_less_of_their_boxes_and_older_folders_are_still_read(tmp_path):
    def coverage(config: ShapesConfig) -> dict[str, float]:
        """The median share of its box that a whole shape of each class covers."""
        shares: dict[str, list[float]] = {name: [] for name in CLASS_NAMES}
        for seed in range(120):
            for entry in draw_shapes(config, np.random.default_rng(seed)).annotations:
                _, _, width, height = entry["bbox"]
                shares[CLASS_NAMES[entry["category_id"] - 1]].append(entry["area"] / (width * height))
        return {name: float(np.median(values)) for name, values in shares.items()}

    plain, thin = (coverage(replace(CONFIG, max_shapes=1, thin=thin)) for thin in (False, True))
    # Areas by geometry, of the circle around a shape: pi (1 - hole^2) / 4 of a ring's box; a plus's box turns with it.
    assert thin["ring"] == pytest.approx(np.pi / 4 * (1 - 0.8**2), rel=0.08)
    assert plain["ring"] == pytest.approx(np.pi / 4 * (1 - 0.5**2), rel=0.08)
    for name in CLASS_NAMES:
        assert (thin[name] < 0.7 * plain[name]) == (name in ("ring", "cross", "star")), name
    write_shapes(CONFIG, tmp_path / "shapes")
    assert "thin" not in json.loads((tmp_path / "shapes" / "shapes.json").read_text())
    with pytest.raises(UserError, match="of other settings"):
        replace(CONFIG, root=str(tmp_path / "shapes"), thin=True).check_prepared()


def test_backgrounds_are_stuff_and_shapes_have_outermost_points(tmp_path):
    """What the files say is what was drawn, and the image is the same as without."""
    config = replace(CONFIG, root=str(tmp_path / "stuff"), num_train=40, stuff=True, keypoints=True)
    config.prepare()
    dataset = config.load("train")
    assert (dataset.stuff_names, dataset.keypoint_names) == (TEXTURES, ("left", "top", "right", "bottom"))
    assert not dataset.problems
    backdrops = set()
    for index, record in enumerate(dataset.records):
        drawing = draw_shapes(config, np.random.default_rng([config.seed, 0, index]))
        plain = draw_shapes(CONFIG, np.random.default_rng([config.seed, 0, index])).image
        np.testing.assert_array_equal(drawing.image, plain)
        np.testing.assert_array_equal(read_kinds(record), np.where(drawing.owner > 0, 0, drawing.backdrop + 1))
        np.testing.assert_array_equal(read_numbers(record), drawing.owner + 1)
        backdrops.add(drawing.backdrop)
        for row, (keypoints, (x1, y1, x2, y2)) in enumerate(zip(record.keypoints, record.boxes, strict=True)):
            (left, _), (_, top), (right, _), (_, bottom) = keypoints[:, :2]
            # In the middle of the outermost row or column of pixels; boxes end at its outer edge.
            assert (left, top, right, bottom) == (x1 + 0.5, y1 + 0.5, x2 - 0.5, y2 - 0.5)
            columns, rows = keypoints[:, :2].astype(int).T
            assert (drawing.owner[rows, columns] == row + 1).all()
    assert backdrops == {0, 1, 2}
