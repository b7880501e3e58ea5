"""PointRend's mask head: by itself on features that are given, and within the smallest model."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.models import (
    MaskRCNNConfig,
    Mean,
    PointRendConfig,
    Variables,
    architectures,
    detect,
    init,
    loss_terms,
)
from mask_rcnn_jax.models.backbones.base import Feature
from mask_rcnn_jax.models.context import Context, Inputs
from mask_rcnn_jax.models.heads import point_rend
from mask_rcnn_jax.models.heads.point_rend import PointRendHead
from mask_rcnn_jax.ops.pooling import points as point_ops
from mask_rcnn_jax.structures import GroundTruth, PaddedDetections, SampledRoIs
from mask_rcnn_jax.training.step import init_state, make_train_step
from tests.programs import count_exact_products, scopes
from tests.stepping import mesh_of, take_steps
from tests.tiny import one_map_model, tiny_batch, tiny_experiment

SMALL = PointRendConfig(
    feature="res3",
    pooled_size=6,
    coarse_channels=8,
    coarse_fc_channels=16,
    num_coarse_fcs=1,
    coarse_size=4,
    num_point_fcs=1,
    point_channels=16,
    train_points=24,
    subdivisions=2,
    subdivision_points=64,
)
MODEL = replace(
    one_map_model(), mask_head=SMALL, box_head=replace(one_map_model().box_head, score_threshold=0.1)
)  # one of seven classes has a seventh
CLASSES, SIDE, STRIDE = 3, 16, 4
train_points = jax.jit(point_rend.train_points, static_argnums=0)


def build(config: PointRendConfig = SMALL, channels: int = 4) -> tuple[nnx.GraphDef, nnx.State]:
    inputs = Inputs({"res3": Feature(channels, STRIDE)}, CLASSES)
    return nnx.split(config.build(inputs, nnx.Rngs(0)))


def context_of(features: jax.Array) -> Context:
    side = SIDE * STRIDE
    sizes = jnp.full((len(features), 2), side, jnp.int32)
    return Context({"res3": features}, {"res3": STRIDE}, sizes, (side, side), lambda *_: pytest.fail("no RoIAlign"))


def scene() -> tuple[jax.Array, SampledRoIs, GroundTruth]:
    """Two images with a disc each, whose features tell where it is; RoIs around it, and one that is padding."""
    x, y = np.meshgrid(np.arange(SIDE * STRIDE) + 0.5, np.arange(SIDE * STRIDE) + 0.5)
    discs = np.stack([(x - cx) ** 2 + (y - cy) ** 2 < 18**2 for cx, cy in ((30, 28), (36, 33))])
    cells = discs.reshape(2, SIDE, STRIDE, SIDE, STRIDE).mean((2, 4))
    features = np.stack([cells, 1 - cells, np.ones_like(cells), np.zeros_like(cells)], axis=-1)
    boxes = jnp.array(
        [[[8.0, 9, 50, 47], [14, 5, 49, 50], [0, 0, 0, 0]], [[17.0, 14, 55, 52], [9, 9, 60, 58], [0] * 4]]
    )
    foreground = jnp.array([[True, True, False]] * 2)
    classes = jnp.where(foreground, jnp.array([[1], [2]]), CLASSES)
    rois = SampledRoIs(boxes, jnp.zeros((2, 3), jnp.int32), classes, foreground, foreground)
    whole = jnp.array([[[0.0, 0, SIDE * STRIDE, SIDE * STRIDE]]] * 2)
    masks = jnp.array(255 * discs[:, None], jnp.uint8)
    truth = GroundTruth(boxes[:, :1], jnp.array([[1], [2]]), masks, jnp.ones((2, 1), bool), mask_regions=whole)
    return jnp.array(features, jnp.float32), rois, truth


def losses_of(graph, params, features, rois, truth, keys):
    return nnx.merge(graph, params).losses(context_of(features), rois, truth, keys)


def test_the_grids_are_those_of_detectron2():
    assert PointRendConfig().grids == (28, 56, 112, 224)
    assert SMALL.grids == (8, 16)
    assert replace(SMALL, subdivision_points=10_000).grids == (16,)
    assert replace(SMALL, subdivisions=0).grids == (4,)


def test_a_head_learns_and_what_it_learnt_is_found_with_finer_borders():
    features, rois, truth = scene()
    graph, params = build()

    @jax.jit
    def step(params, key):
        def total(params):
            terms = losses_of(graph, params, features, rois, truth, jax.random.split(key, 2))
            terms = {
                name: replace(term, total=jnp.sum(term.total), count=jnp.sum(term.count))
                for name, term in terms.items()
            }
            return terms["loss/mask"].value + terms["loss/mask_point"].value, terms

        gradients, terms = jax.grad(total, has_aux=True)(params)
        return jax.tree.map(lambda x, g: x - 0.5 * g, params, gradients), terms

    history = []
    for number in range(150):
        params, terms = step(params, jax.random.key(number))
        history.append({name: float(term.value) for name, term in terms.items()})
    first, last = history[0], history[-1]
    assert first["loss/mask"] == pytest.approx(np.log(2), rel=0.01)
    assert first["loss/mask_point"] == pytest.approx(np.log(2), rel=0.01)
    assert terms["loss/mask_point"].count == 2 * 2 * 24  # not the points of padding
    assert last["loss/mask"] < 0.3
    assert last["loss/mask_point"] < 0.3
    found = PaddedDetections(rois.boxes, jnp.zeros((2, 3)), rois.classes % CLASSES, None, rois.valid)
    masks = np.asarray(jax.jit(lambda params: nnx.merge(graph, params).answer(context_of(features), found))(params))
    assert masks.shape == (2, 3, 16, 16)
    assert not masks[:, 2].any()
    for image in range(2):
        for roi in range(2):
            points = point_ops.place_in_boxes(point_ops.grid_points(16), rois.boxes[image, roi])
            x, y = np.floor(np.asarray(points)).astype(int).T
            exact = np.asarray(truth.masks[image, 0])[y, x].reshape(16, 16) > 0
            wrong = exact != (masks[image, roi] > 0.5)
            assert wrong.mean() < 0.06


def test_points_follow_the_keys_and_are_the_same_everywhere_without():
    coarse = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 4)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 2)
    first, again, other, fixed = (np.asarray(train_points(SMALL, k, coarse)) for k in (keys, keys, keys[::-1], None))
    assert first.shape == fixed.shape == (2, 3, 24, 2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(np.unique(fixed.reshape(-1, 2), axis=0)) <= 72  # the candidates of all
    one_by_one = train_points(SMALL, keys[1:], coarse[1:])
    np.testing.assert_array_equal(first[1:], one_by_one)


def test_points_of_training_are_drawn_to_the_border_of_the_coarse_mask():
    # Logits that rise from left to right and are 0 in the middle.
    ramp = jnp.broadcast_to(jnp.linspace(-3.0, 3.0, 4), (1, 2, 4, 4))
    config = replace(SMALL, train_points=100)
    points = np.asarray(train_points(config, jax.random.split(jax.random.key(0), 1), ramp))
    distance = np.abs(points[..., 0] - 0.5)
    assert distance[..., :75].mean() < 0.09  # of 300 that are uniform the nearest 75 have .0625, of all .25
    assert distance[..., 75:].mean() > 0.2


def test_losses_for_gpu_add_nothing_in_any_order_and_only_layers_round():
    graph, params = build()
    features, rois, truth = scene()

    def total(params, features):
        terms = losses_of(graph, params, features, rois, truth, jax.random.split(jax.random.key(0), 2))
        return sum(jnp.sum(term.total) for name, term in terms.items() if name.startswith("loss/"))

    lowered = jax.jit(jax.grad(total, argnums=(0, 1))).trace(params, features).lower(lowering_platforms=("cuda",))
    assert "scatter" not in lowered.as_text()
    assert count_exact_products(lowered) > 8


def test_only_layers_round_when_masks_are_made_finer():
    graph, params = build()
    features, rois, _ = scene()
    found = PaddedDetections(rois.boxes, jnp.zeros((2, 3)), rois.classes % CLASSES, None, rois.valid)
    answer = jax.jit(lambda params: nnx.merge(graph, params).answer(context_of(features), found))
    assert count_exact_products(answer.trace(params).lower(lowering_platforms=("cuda",))) > 4


def test_both_heads_are_computed_again_where_it_is_asked(variables):
    batch = jax.tree.map(jnp.asarray, tiny_batch())

    def program(config):
        def total(params):
            return loss_terms(config, Variables(params, variables.buffers), batch, None)[0]["loss/mask_point"].total

        return str(jax.make_jaxpr(jax.grad(total))(variables.params))

    counts = [program(replace(MODEL, remat=names)).count("remat2[") for names in ((), ("mask_head",))]
    assert counts[0] < counts[1] - 1


def test_features_wider_than_the_head_are_reduced_first():
    _, params = build(channels=12)
    kernels = {"/".join(path): leaf.shape for path, leaf in nnx.to_flat_state(params) if path[-1] == "kernel"}
    assert kernels["coarse_head/reduce_channels/kernel"] == (1, 1, 12, 8)
    assert kernels["coarse_head/reduce_sides/kernel"] == (2, 2, 8, 8)
    assert kernels["coarse_head/fc1/kernel"] == (8 * 3 * 3, 16)
    assert kernels["point_head/fc1/kernel"] == (12 + CLASSES, 16)


def test_a_feature_that_the_backbone_does_not_make_is_named():
    with pytest.raises(ValueError, match=r"mask_head\.feature has p2, but the backbone makes res3"):
        replace(one_map_model(), mask_head=PointRendConfig())
    model = architectures.point_rend(MaskRCNNConfig())
    assert model.mask_head == PointRendConfig()
    assert model.all_heads.keys() == {"mask_head"}


# --- In a model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variables():
    return init(MODEL, jax.random.key(0))


def test_masks_are_learnt_on_predicted_boxes_through_which_no_gradient_flows(variables):
    batch, deltas = jax.tree.map(jnp.asarray, tiny_batch()), variables.params["box_head"]["box_deltas"]

    def losses(self, context, rois, truth, keys):
        return {"loss/mask": Mean(jnp.sum(rois.boxes, axis=(1, 2)), jnp.ones(2))}

    def sum_of_boxes(moved):
        box_head = variables.params["box_head"] | {"box_deltas": deltas | {"kernel": deltas["kernel"] + moved}}
        moved_variables = Variables(variables.params | {"box_head": box_head}, variables.buffers)
        return loss_terms(MODEL, moved_variables, batch, None)[0]["loss/mask"].total

    with mock.patch.object(PointRendHead, "losses", losses):
        at = jax.jit(jax.value_and_grad(sum_of_boxes))
        (here, gradient), (there, _) = at(0.0), at(0.01)
    assert here != there
    assert gradient == 0


def test_detections_have_masks_and_padding_has_none(variables):
    batch = tiny_batch()
    found = jax.jit(detect, static_argnums=0)(MODEL, variables, batch.images, batch.image_sizes)
    valid, masks = np.asarray(found.valid), np.asarray(found.masks)
    assert masks.shape == (2, 10, 16, 16)
    assert valid.any()
    assert not masks[~valid].any()
    assert ((masks[valid] > 0) & (masks[valid] < 1)).all()


@pytest.mark.slow
def test_a_model_with_point_rend_trains_on_two_devices_and_its_step_lowers_for_gpu():
    config = replace(tiny_experiment(Path("unused"), batch_size=4), model=MODEL, steps=60)
    config = replace(config, schedule=replace(config.schedule, learning_rate=0.05))
    _, history = take_steps(config, 2, lambda step: tiny_batch(4), 60)
    for name in ("loss/mask", "loss/mask_point"):
        assert np.mean([measures[name] for measures in history[-5:]]) < 0.9 * history[0][name]
    state, step = jax.eval_shape(lambda: init_state(config)), make_train_step(config, mesh_of(2))
    inputs = state, tiny_batch(4), jax.eval_shape(step.hyperparameters, state.step)
    lowered = step.program.trace(*inputs).lower(lowering_platforms=("cuda",))
    assert {"mask_head", "coarse_mask", "train_points", "point_losses", "mask_losses"} <= scopes(lowered)


def test_bfloat16_keeps_float32_gradients(variables):
    def total(params):
        batch = jax.tree.map(jnp.asarray, tiny_batch())
        terms, _ = loss_terms(replace(MODEL, dtype="bfloat16"), Variables(params, variables.buffers), batch, None)
        return terms["loss/mask_point"].value

    gradients = jax.eval_shape(jax.grad(total), variables.params)
    assert {gradient.dtype for gradient in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
