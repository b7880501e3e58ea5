"""The predictor around a detector that finds what the images say, so that the answers are known."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.inference import DetectFn, Detections, batched, predict
from mask_rcnn_jax.inference.results.masks import encode_masks
from mask_rcnn_jax.models import MaskRCNNConfig, Variables
from mask_rcnn_jax.structures import EvalBatch, PaddedDetections

CONFIG, VARIABLES = MaskRCNNConfig(), Variables({"scale": np.float32(0.01)}, {})


def corner_detector(config, variables, images, image_sizes) -> PaddedDetections:
    """Finds as many instances as the first pixel says, in the lower right quarter; scores tell images apart."""
    count, size = images[:, 0, 0, 0].astype(jnp.int32), image_sizes.astype(jnp.float32)
    sides = size[:, ::-1]
    box = jnp.concatenate([sides / 2, sides], axis=1)
    slots = jnp.arange(3)
    valid = slots < count[:, None]
    scores = variables.params["scale"] * images[:, 0, 1, 0].astype(jnp.float32)
    return PaddedDetections(
        boxes=jnp.where(valid[..., None], box[:, None], 0.0),
        scores=jnp.where(valid, scores[:, None] - 0.01 * slots, 0.0),
        classes=jnp.where(valid, slots, 0),
        masks=jnp.where(valid[..., None, None], jnp.ones((4, 4)), 0.0),
        valid=valid,
    )


def batch_of(counts: list[int], valid: list[bool] | None = None, first_id: int = 0) -> EvalBatch:
    size = len(counts)
    images = np.zeros((size, 16, 32, 3), np.uint8)
    images[:, 0, 0, 0] = counts
    images[:, 0, 1, 0] = 50 + np.arange(size)
    return EvalBatch(
        images=images,
        image_sizes=np.full((size, 2), [10, 20], np.int32),
        original_sizes=np.full((size, 2), [33, 50], np.int32),
        image_ids=np.arange(first_id, first_id + size, dtype=np.int64),
        valid=np.array(valid or [True] * size),
    )


def found_in(batch: dict[str, np.ndarray], detect: DetectFn = corner_detector) -> list[Detections]:
    return [found for _, found in predict(CONFIG, VARIABLES, [batch], detect)]


def test_boxes_come_back_in_original_pixels_without_padding() -> None:
    ids, found = zip(*predict(CONFIG, VARIABLES, [batch_of([2, 0, 1])], corner_detector), strict=True)
    assert ids == (0, 1, 2)
    assert [len(d.boxes) for d in found] == [2, 0, 1]
    np.testing.assert_allclose(found[0].boxes, [[25, 16.5, 50, 33]] * 2, rtol=1e-6)
    np.testing.assert_allclose(found[0].scores, [0.50, 0.49], rtol=1e-6)
    np.testing.assert_array_equal(found[0].classes, [0, 1])
    assert (found[0].height, found[0].width) == (33, 50)


def test_masks_are_pasted_into_the_original_image() -> None:
    masks = found_in(batch_of([2, 0]))[0].masks
    assert masks is not None
    assert masks.shape == (2, 33, 50)
    # The lower right quarter, of which interpolation towards the zeros outside rounds the corners off.
    assert not masks[:, :16].any()
    assert not masks[:, :, :25].any()
    assert masks[:, 18:31, 28:47].all()


def test_padded_rows_are_left_out_and_batches_stay_in_order() -> None:
    batches = [batch_of([1, 2]), batch_of([3, 1], [True, False], first_id=2)]
    found = list(predict(CONFIG, VARIABLES, batches, corner_detector))
    assert [(image_id, len(d.boxes)) for image_id, d in found] == [(0, 1), (1, 2), (2, 3)]


def test_no_batches() -> None:
    assert list(predict(CONFIG, VARIABLES, [], corner_detector)) == []


def test_sharing_a_batch_among_devices_changes_nothing() -> None:
    devices = jax.device_count()
    if devices == 1:
        pytest.skip("needs several devices")
    counts = [i % 4 for i in range(2 * devices)]
    shared = found_in(batch_of(counts))
    # A batch of one more row cannot be shared equally: one device takes it.
    alone = found_in(batch_of([*counts, 0]))
    for a, b in zip(shared, alone[:-1], strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.scores, b.scores)


def test_keypoints_come_back_in_original_pixels_with_their_scores() -> None:
    def at_the_corner_of_the_box(*arguments):
        found = corner_detector(*arguments)
        corner = jnp.concatenate([found.boxes[..., None, :2], found.scores[..., None, None]], axis=-1)
        outside = corner + jnp.array([40.0, 0.0, 0.0])  # boxes are clipped to the image, keypoints are not
        return replace(found, keypoints=jnp.concatenate([corner, outside], axis=-2))

    found = found_in(batch_of([2, 0]), at_the_corner_of_the_box)
    assert found[0].keypoints is not None
    assert found[1].keypoints is not None
    np.testing.assert_allclose(found[0].keypoints[:, 0, :2], found[0].boxes[:, :2], rtol=1e-6)
    np.testing.assert_allclose(found[0].keypoints[:, 1, 0], found[0].boxes[:, 0] + 40 * 2.5, rtol=1e-6)
    np.testing.assert_allclose(found[0].keypoints[..., 2], found[0].scores[:, None].repeat(2, axis=1), rtol=1e-6)
    assert found[1].keypoints.shape == (0, 2, 3)
    assert found_in(batch_of([1]))[0].keypoints is None


def test_a_model_without_masks() -> None:
    def boxes_only(*arguments):
        found = corner_detector(*arguments)
        return PaddedDetections(found.boxes, found.scores, found.classes, None, found.valid)

    assert found_in(batch_of([2]), boxes_only)[0].masks is None


def with_extras_and_maps(*arguments) -> PaddedDetections:
    """Numbers that tell image and instance, and maps whose cells say where they are on grids of 4 x 4 and 16 x 32."""
    found, images = corner_detector(*arguments), arguments[2]
    number = jnp.where(found.valid, found.scores * 100, 0.0)
    grids = {name: jnp.stack(jnp.indices(sides), axis=-1) for name, sides in (("coarse", (4, 4)), ("fine", (16, 32)))}
    return replace(
        found,
        extras={"code": jnp.stack([number, -number], axis=-1).astype(jnp.bfloat16), "rank": number.astype(jnp.int32)},
        maps={name: jnp.broadcast_to(grid, (len(images), *grid.shape)) for name, grid in grids.items()},
    )


def test_extras_lose_their_padding_and_maps_the_cells_that_the_image_does_not_touch() -> None:
    count = jax.device_count()
    batch = batch_of([2, 0] + [1] * (count - 2) if count > 1 else [2, 0])
    batch.image_sizes[1] = 8, 32  # whole cells high, and as wide as the batch
    found = found_in(batch, with_extras_and_maps)
    np.testing.assert_array_equal(found[0].extras["rank"], [50, 49])
    np.testing.assert_array_equal(found[0].extras["code"], [[50, -50], [49, -49]])
    assert (found[0].extras["rank"].dtype, found[0].extras["code"].dtype) == (np.int32, np.float32)
    assert {name: values.shape for name, values in found[1].extras.items()} == {"code": (0, 2), "rank": (0,)}
    # Of 16 x 32 pixels the image has 10 x 20: of cells of 4 x 8 it touches 2.5 x 2.5.
    assert {name: values.shape for name, values in found[0].maps.items()} == {"coarse": (3, 3, 2), "fine": (10, 20, 2)}
    assert {name: values.shape for name, values in found[1].maps.items()} == {"coarse": (2, 4, 2), "fine": (8, 32, 2)}
    np.testing.assert_array_equal(found[0].maps["fine"][-1, -1], [9, 19])


def test_what_is_left_out_is_not_pasted(monkeypatch) -> None:
    pasted = []

    def encode(boxes, *arguments):
        pasted.append(len(boxes))
        return encode_masks(boxes, *arguments)

    monkeypatch.setattr(batched, "encode_masks", encode)
    run = functools.partial(predict, CONFIG, VARIABLES, detect=corner_detector)
    ((_, everything),) = run([batch_of([3])])
    names = "third", "first"
    ((_, of_classes),) = run([batch_of([3])], class_names=names, class_of=np.array([1, -1, 0]))
    ((_, above),) = run([batch_of([3])], min_score=float(everything.scores[1]))
    ((_, best),) = run([batch_of([3])], class_of=np.array([1, -1, 0]), min_score=float(everything.scores[1]))
    assert pasted == [3, 2, 1, 1]
    assert of_classes.names == ["first", "third"]
    assert everything.rles is not None
    assert of_classes.rles == everything.rles[::2]
    np.testing.assert_array_equal(of_classes.scores, everything.scores[[0, 2]])
    np.testing.assert_array_equal(above.scores, everything.scores[:1])
    np.testing.assert_array_equal(best.scores, everything.scores[:1])


def test_detections_keep_no_batch_alive() -> None:
    def with_everything(*arguments):
        found = with_extras_and_maps(*arguments)
        return replace(found, keypoints=found.boxes[..., None, :3])

    (found,) = found_in(batch_of([3]), with_everything)
    arrays = [found.boxes, found.scores, found.classes, found.keypoints, *found.extras.values(), *found.maps.values()]
    assert [array.base for array in arrays] == [None] * len(arrays)
