"""Test-time augmentation against the plain predictor, and what must hold of mirrored images."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import Detections, Model, Predictor
from mask_rcnn_jax.inference.augmented import AugmentationConfig, AugmentedPredictor, _merge, _View
from mask_rcnn_jax.models import KeypointHeadConfig, NormConfig, SemanticHeadConfig, SoftNMSConfig, init
from mask_rcnn_jax.structures import PaddedDetections
from tests.tiny import one_map_model, tiny_model

NAMES = ("red", "green", "blue")
MIRRORED = (0, 2, 1)


@pytest.fixture(scope="module")
def model() -> Model:
    """Untrained, with masks and three keypoints; random weights find something of every class."""
    base = one_map_model()
    keypoints = KeypointHeadConfig(base.mask_head.pooler, num_keypoints=3, num_convs=1, channels=16)
    config = replace(base, num_classes=len(NAMES), keypoint_head=keypoints)
    config = replace(config, box_head=replace(config.box_head, max_detections=40))
    variables = init(config, jax.random.key(1))
    params = jax.tree.map_with_path(larger, variables.params)
    data = DataConfig(short_side_eval=64, max_side=96, canvas=(64, 96))
    return Model(config, data, replace(variables, params=params), NAMES, (1, 2, 3), 0)


def larger(path: Any, weights: jax.Array) -> jax.Array:
    """The last layers' weights, so that classes and masks depend on what is seen."""
    name = jax.tree_util.keystr(path)
    return weights * (20 if "predictor" in name else 3 if "class_logits" in name else 1)


def picture(seed: int, height: int = 64, width: int = 96) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 90, np.uint8)
    for _ in range(4):
        y, x = rng.integers(0, height - 20), rng.integers(0, width - 20)
        image[y : y + rng.integers(12, 30), x : x + rng.integers(12, 40)] = rng.integers(0, 255, 3)
    return image


def augmented(model: Model, *scales: float, flip: bool, mirrored: tuple[int, ...] = MIRRORED) -> AugmentedPredictor:
    return AugmentedPredictor(model, AugmentationConfig(scales, flip, mirrored))


def as_bytes(found: Detections) -> list:
    return [rle | {"counts": rle["counts"].encode()} for rle in found.rles or ()]


def assert_same(found: Detections, expected: Detections) -> None:
    assert len(expected) > 0
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=2e-3)
    masks, of_expected = found.masks, expected.masks
    assert masks is not None
    assert of_expected is not None
    assert (masks != of_expected).mean() < 1e-3
    assert found.keypoints is not None
    assert expected.keypoints is not None
    # A keypoint is a pixel of its box: what is as good as it may be the next one.
    assert (np.abs(found.keypoints - expected.keypoints).max(axis=-1) < 1e-2).mean() > 0.95


@pytest.mark.parametrize("size", [(64, 96), (50, 80)])
def test_one_version_is_the_plain_predictor(model, size):
    image = picture(0, *size)
    expected = Predictor(model)(image)
    assert {*expected.classes.tolist()} == {0, 1, 2}  # the last category among them
    assert_same(augmented(model, 1.0, flip=False)(image), expected)
    assert_same(augmented(model, 1.0, 1.0, flip=False)(image), expected)


def test_the_last_category_is_kept():
    """Detectron2 once left it out: its scores were taken for those of the background."""
    box = jnp.array([[[4.0, 4, 20, 20], [30, 4, 50, 20]]])
    found = PaddedDetections(box, jnp.array([[0.9, 0.8]]), jnp.array([[2, 1]]), None, jnp.ones((1, 2), bool))
    size = jnp.array([64, 64])
    merged = jax.tree.map(lambda x: x[0], _merge(tiny_model(), (False,), size, [_View({}, found, size, (64, 64))]))
    assert merged.classes[:2].tolist() == [2, 1]
    assert merged.valid.sum() == 2


def test_boxes_of_all_versions_are_merged_within_their_class():
    plain = jnp.array([[10.0, 10, 30, 30], [0, 0, 0, 0]])
    mirror_image = jnp.array([[34.0, 10, 54, 30], [4, 40, 24, 60]])  # of a width of 64: the same box, and another
    found = PaddedDetections(
        jnp.stack([plain, mirror_image]),
        jnp.array([[0.7, 0.0], [0.8, 0.6]]),
        jnp.array([[1, 0], [1, 1]]),
        None,
        jnp.array([[True, False], [True, True]]),
    )
    size = jnp.array([64, 64])
    half = replace(found, boxes=found.boxes / 2, scores=found.scores - 0.1, classes=jnp.array([[1, 0], [2, 1]]))
    views = [_View({}, found, size, (64, 64)), _View({}, half, size // 2, (32, 32))]
    merged = jax.tree.map(lambda x: x[0], _merge(tiny_model(), (False, True), size, views))
    kept = [(k, *box) for k, box in zip(merged.classes.tolist(), merged.boxes.tolist(), strict=True)]
    assert merged.valid.sum() == 3
    assert kept[:3] == [(1, 10, 10, 30, 30), (2, 10, 10, 30, 30), (1, 40, 40, 60, 60)]


def test_soft_nms_merges_as_it_finds():
    config = tiny_model()
    config = replace(config, box_head=replace(config.box_head, soft_nms=SoftNMSConfig()))
    boxes = jnp.array([[[10.0, 10, 30, 30], [10, 10, 30, 26]]])
    found = PaddedDetections(boxes, jnp.array([[0.9, 0.8]]), jnp.ones((1, 2), int), None, jnp.ones((1, 2), bool))
    size = jnp.array([64, 64])
    merged = _merge(config, (False,), size, [_View({}, found, size, (64, 64))])
    np.testing.assert_allclose(merged.boxes[0, :2], boxes[0])
    np.testing.assert_allclose(merged.scores[0, :2], [0.9, 0.8 * np.exp(-(0.8**2) / 0.5)], rtol=1e-6)
    assert merged.valid.sum() == 2


@pytest.mark.parametrize("seed", range(3))
def test_the_mirrored_image_has_the_mirrored_answer(model, seed):
    """All versions count: each of them becomes another one when the image is mirrored, and left becomes right."""
    predictor, image = augmented(model, 1.0, 0.5, flip=True), picture(seed)
    found, of_mirrored = predictor(image), predictor(image[:, ::-1])
    assert found.masks is not None
    assert found.keypoints is not None
    boxes = np.stack([96 - found.boxes[:, 2], found.boxes[:, 1], 96 - found.boxes[:, 0], found.boxes[:, 3]], axis=1)
    keypoints = found.keypoints[:, list(MIRRORED)] * [-1, 1, 1] + [96, 0, 0]
    masks = [coco_mask.encode(np.asfortranarray(mask[:, ::-1], np.uint8)) for mask in found.masks]
    rles = tuple({"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in masks)
    turned = replace(found, boxes=boxes, keypoints=keypoints.astype(np.float32), rles=rles)
    assert_same(of_mirrored, turned)
    # And it is not what one version says.
    assert not np.array_equal(found.scores, augmented(model, 1.0, flip=False)(image).scores)


def test_a_higher_threshold_leaves_out(model):
    image, config = picture(0), AugmentationConfig((1.0,), False)
    everything = AugmentedPredictor(model, config)(image)
    threshold = float(everything.scores[3])
    found = AugmentedPredictor(model, config, score_threshold=threshold)(image)
    np.testing.assert_array_equal(found.boxes, everything.boxes[:3])


def test_images_that_cannot_be_read_are_left_out(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    predictor, failed = augmented(model, 1.0, flip=False), []
    images = [tmp_path / "broken.png", picture(0)]
    found = list(predictor.stream(images, lambda image, error: failed.append(image)))
    assert len(found) == 1
    assert failed == [tmp_path / "broken.png"]
    with pytest.raises(UserError, match=r"broken\.png"):
        predictor(tmp_path / "broken.png")


def test_mirrors_are_known_by_name(model):
    def places(model: Model, given: tuple[int, ...] | None = None) -> tuple[int, ...]:
        return AugmentedPredictor(model, AugmentationConfig(mirrored_keypoints=given))._mirror.keypoints

    named = replace(model, keypoint_names=("leftEye", "rightEye", "nose"))
    assert places(named) == (1, 0, 2)
    assert places(named, MIRRORED) == MIRRORED
    told = replace(named, data=replace(named.data, keypoint_flips=(("rightEye", "nose"),)))
    assert places(told) == (0, 2, 1)
    seventeen = replace(model.config, keypoint_head=replace(model.config.keypoint_head, num_keypoints=17))
    with pytest.raises(UserError, match="17 keypoints mirror each other is not known"):
        places(replace(model, config=seventeen))
    with pytest.raises(UserError, match="17 keypoints mirror each other is not known"):
        places(replace(named, config=seventeen))


@pytest.mark.parametrize("max_detections", [8, 9])
def test_kinds_of_stuff_are_not_averaged(model, max_detections):
    """Nor where the grid has as many rows as there are detections, 64 / 8, and could be taken for them."""
    norm = NormConfig(kind="group_norm", groups=4)
    head = SemanticHeadConfig(features=("res3",), num_kinds=3, channels=16, norm=norm)
    box_head = replace(model.config.box_head, max_detections=max_detections)
    config = replace(model.config, box_head=box_head, keypoint_head=None, mask_head=None, heads=(head,))
    found = replace(model, config=config, variables=init(config, jax.random.key(0)))
    with pytest.raises(UserError, match="predict without test-time augmentation"):
        augmented(found, 1.0, flip=False)(picture(0))


def test_unknown_mirrors_and_scales(model):
    with pytest.raises(
        UserError, match=r"which of the model's 3 keypoints mirror each other is not known; .*--no-flip"
    ):
        AugmentedPredictor(model)
    AugmentedPredictor(model, AugmentationConfig(flip=False))
    with pytest.raises(UserError, match="scales"):
        AugmentationConfig(scales=(0.0,))
