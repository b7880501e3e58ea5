"""The composed model: padding, conventions, ancestors, precision."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.models import MaskRCNNConfig, NormConfig, Variables, detect, init, loss_terms, torchvision
from mask_rcnn_jax.models.rcnn import normalize
from mask_rcnn_jax.structures import Batch
from tests.programs import scopes
from tests.tiny import one_map_model, tiny_batch, tiny_model, with_more_slots

# One of seven classes has a seventh.
WITH_DETECTIONS = replace(one_map_model(), box_head=replace(one_map_model().box_head, score_threshold=0.1))
_loss_terms = jax.jit(loss_terms, static_argnums=0)
_detect = jax.jit(detect, static_argnums=0)


def losses(config: MaskRCNNConfig, variables: Variables, batch: Batch, keys) -> dict[str, jax.Array]:
    batch = jax.tree.map(jnp.asarray, batch)
    terms, _ = _loss_terms(config, variables, batch, keys)
    return {name: term.value for name, term in terms.items()}


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(7), 2)


@pytest.fixture(scope="module")
def variables():
    return init(one_map_model(), jax.random.key(0))


def test_losses_by_name_are_finite(variables, keys):
    found = losses(one_map_model(), variables, tiny_batch(), keys)
    names = {"loss/rpn_objectness", "loss/rpn_box", "loss/box_class", "loss/box", "loss/mask"}
    assert {name for name in found if name.startswith("loss/")} == names
    assert all(np.isfinite(value) for value in found.values())
    assert found["loss/mask"] == pytest.approx(np.log(2), rel=0.2)  # an untrained sigmoid


def test_more_ground_truth_slots_change_nothing(variables, keys):
    config, batch = one_map_model(), tiny_batch()
    few, many = (losses(config, variables, b, keys) for b in (batch, with_more_slots(batch, 3)))
    for name in few:
        np.testing.assert_allclose(few[name], many[name], rtol=1e-5, err_msg=name)


def test_sampling_follows_the_keys(variables, keys):
    # 300 candidate anchors for 32 samples: another key draws others.
    config, batch = one_map_model(), tiny_batch()
    first, again = losses(config, variables, batch, keys), losses(config, variables, batch, keys)
    other = losses(config, variables, batch, jax.random.split(jax.random.key(8), 2))
    assert all(first[name] == again[name] for name in first)
    assert first["loss/rpn_objectness"] != other["loss/rpn_objectness"]


def test_masks_are_learnt_on_proposals_and_not_on_predicted_boxes(variables, keys):
    config, batch = one_map_model(), tiny_batch()
    params = dict(variables.params)
    kernel = params["box_head"]["box_deltas"]["kernel"]
    moved = {"kernel": kernel + 1.0, "bias": params["box_head"]["box_deltas"]["bias"] + 1.0}
    params["box_head"] = params["box_head"] | {"box_deltas": moved}
    before = losses(config, variables, batch, keys)
    after = losses(config, Variables(params, variables.buffers), batch, keys)
    assert after["loss/box"] != before["loss/box"]
    assert after["loss/mask"] == before["loss/mask"]


def test_a_batch_of_empty_images_has_finite_losses(variables, keys):
    """Its gradients are finite, too: `tests/training/test_divergence.py`."""
    batch = tiny_batch()
    truth = jax.tree.map(lambda x: np.zeros_like(x), batch.ground_truth)
    found = losses(one_map_model(), variables, replace(batch, ground_truth=truth), keys)
    assert all(np.isfinite(value) for value in found.values())
    assert found["loss/mask"] == 0
    assert found["loss/box"] == 0
    assert found["loss/rpn_objectness"] > 0


@pytest.mark.parametrize("convention", ["detectron2", "torchvision"])
def test_detections_are_ordered_padded_and_inside_the_image(convention):
    config, batch = WITH_DETECTIONS, tiny_batch()
    config = torchvision(config) if convention == "torchvision" else config
    sizes = np.array([[64, 64], [40, 56]], np.int32)
    images = batch.images.copy()
    images[1, 40:], images[1, :, 56:] = 0, 0
    found = _detect(config, init(config, jax.random.key(3)), images, jnp.asarray(sizes))
    assert found.masks.shape == (2, 10, 28, 28)
    for row in range(2):
        valid = np.asarray(found.valid[row])
        assert (np.diff(valid.astype(int)) <= 0).all()
        assert (np.diff(np.asarray(found.scores[row])) <= 0).all()
        boxes = np.asarray(found.boxes[row])
        assert (boxes >= 0).all()
        assert (boxes <= sizes[row][[1, 0, 1, 0]]).all()
        np.testing.assert_array_equal(boxes[~valid], 0)
        np.testing.assert_array_equal(np.asarray(found.masks[row])[~valid], 0)
    assert found.valid.any()


def test_detections_of_an_image_do_not_depend_on_its_neighbours(variables):
    config, batch = WITH_DETECTIONS, tiny_batch()
    together = _detect(config, variables, batch.images, batch.image_sizes)
    swapped = _detect(config, variables, batch.images[::-1], batch.image_sizes[::-1])
    np.testing.assert_allclose(together.boxes, swapped.boxes[::-1], atol=1e-3)
    np.testing.assert_allclose(together.scores, swapped.scores[::-1], atol=1e-5)


def test_profiles_and_programs_name_the_stages_of_detection(variables):
    batch = jax.tree.map(jnp.asarray, tiny_batch())
    stages = scopes(_detect.lower(WITH_DETECTIONS, variables, batch.images, batch.image_sizes))
    assert {"normalize", "res3", "rpn_head", "proposals", "roi_align", "box_head", "mask_head"} <= stages
    assert "detect_boxes" in stages


def test_faster_rcnn_is_mask_rcnn_without_the_mask_head(variables, keys):
    config = replace(one_map_model(), mask_head=None)
    without_masks = init(config, jax.random.key(0))
    assert set(variables.params) - set(without_masks.params) == {"mask_head"}
    found, full = (
        losses(config, without_masks, tiny_batch(), keys),
        losses(one_map_model(), variables, tiny_batch(), keys),
    )
    assert "loss/mask" not in found
    np.testing.assert_allclose(found["loss/box_class"], full["loss/box_class"], rtol=1e-5)
    batch = jax.tree.map(jnp.asarray, tiny_batch())
    assert _detect(config, without_masks, batch.images, batch.image_sizes).masks is None


def test_bfloat16_stays_close_and_keeps_float32_gradients(variables, keys):
    config = one_map_model()
    exact, rounded = (
        losses(replace(config, dtype=dtype), variables, tiny_batch(), keys) for dtype in ("float32", "bfloat16")
    )
    for name in ("loss/rpn_objectness", "loss/box_class", "loss/mask"):
        assert rounded[name].dtype == jnp.float32
        np.testing.assert_allclose(rounded[name], exact[name], rtol=0.05, err_msg=name)

    def total(params):
        batch = jax.tree.map(jnp.asarray, tiny_batch())
        terms, _ = loss_terms(replace(config, dtype="bfloat16"), Variables(params, variables.buffers), batch, keys)
        return terms["loss/mask"].value

    assert {g.dtype for g in jax.tree.leaves(jax.eval_shape(jax.grad(total), variables.params))} == {
        jnp.dtype("float32")
    }


def test_padding_is_zero_after_normalisation():
    config = replace(one_map_model(), pixel_mean=(10.0, 20.0, 30.0), pixel_std=(1.0, 2.0, 4.0), channel_order="bgr")
    images = np.full((1, 4, 4, 3), 50, np.uint8)
    x = np.asarray(normalize(config, jnp.asarray(images), jnp.array([[2, 3]])))
    np.testing.assert_allclose(x[0, :2, :3], np.broadcast_to([5.0, 15.0, 40.0], (2, 3, 3)))
    np.testing.assert_array_equal(x[0, 2:], 0)
    np.testing.assert_array_equal(x[0, :, 3:], 0)


def test_frozen_norms_and_stages_are_buffers():
    config = tiny_model(NormConfig())
    config = replace(
        config, backbone=replace(config.backbone, bottom_up=replace(config.backbone.bottom_up, freeze_at=2))
    )
    variables = init(config, jax.random.key(0))
    assert set(variables.params["backbone"]["bottom_up"]) == {"res3"}
    assert "norm" not in variables.params["backbone"]["bottom_up"]["res3"]["block1"]["conv1"]
    assert "kernel" in variables.buffers["backbone"]["bottom_up"]["stem"]["conv"]
