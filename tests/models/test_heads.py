"""The contracts of heads and of sources of proposals, by members that are none of the package's."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.config import from_json, override, to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import predict
from mask_rcnn_jax.models import (
    Context,
    GivenProposalsConfig,
    Head,
    HeadConfig,
    Inputs,
    MaskHeadConfig,
    MaskRCNNConfig,
    Variables,
    detect,
    init,
    loss_terms,
)
from mask_rcnn_jax.models.losses import binary_cross_entropy, masked_mean
from mask_rcnn_jax.models.proposals.given import GivenProposals
from mask_rcnn_jax.structures import EvalBatch, Proposals
from tests.tiny import smallest_model, tiny_batch

STRIDE = 8  # of res3


@dataclass(frozen=True)
class ForegroundConfig(HeadConfig):
    """A head on the whole image: where objects are."""

    name: ClassVar[str] = "foreground"

    feature: str = "res3"

    def check(self, inputs: Inputs) -> None:
        inputs.channels((self.feature,), "feature")

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "Foreground":
        return Foreground(self.feature, inputs.channels((self.feature,), "feature"), rngs=rngs)


class Foreground(Head):
    def __init__(self, feature: str, channels: int, *, rngs: nnx.Rngs):
        self.feature = feature
        self.logit = nnx.Linear(channels, 1, rngs=rngs)

    def __call__(self, x):
        return self.logit(x)[..., 0]

    def losses(self, context, rois, truth, keys):
        logits = self(context.features[self.feature])
        rows, columns = (jnp.arange(side) * STRIDE + STRIDE / 2 for side in logits.shape[1:])
        x1, y1, x2, y2 = (side[:, :, None, None] for side in jnp.moveaxis(truth.boxes, -1, 0))
        inside = (x1 <= columns) & (columns < x2) & (y1 <= rows[:, None]) & (rows[:, None] < y2)
        covered = jnp.any(inside & truth.valid[:, :, None, None], axis=1).astype(jnp.float32)
        losses = binary_cross_entropy(logits, covered)
        # Drawn at random, to see whose keys they are.
        chosen = jnp.ones(losses.shape, bool)
        if keys is not None:
            chosen = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, losses.shape[1:]))(keys)
        return {"loss/foreground": jax.vmap(masked_mean)(losses, chosen)}

    def answer(self, context, found):
        return jax.nn.sigmoid(self(context.features[self.feature]))

    def add(self, found, answer):
        return replace(found, maps=found.maps | {"foreground": answer})


@dataclass(frozen=True)
class NeighbourConfig(ForegroundConfig):
    name: ClassVar[str] = "neighbour"

    def build(self, inputs: Inputs, rngs: nnx.Rngs) -> "Neighbour":
        return Neighbour(self.feature, inputs.channels((self.feature,), "feature"), rngs=rngs)


class Neighbour(Foreground):
    def losses(self, context, rois, truth, keys):
        return {"loss/neighbour": super().losses(context, rois, truth, keys)["loss/foreground"]}

    def add(self, found, answer):
        return replace(found, maps=found.maps | {"neighbour": answer})


BASE = replace(smallest_model(), heads=(ForegroundConfig(),))
GIVEN = replace(smallest_model(), rpn=GivenProposalsConfig(num_train=8, num_test=6))
_loss_terms = jax.jit(loss_terms, static_argnums=0)


def losses(config: MaskRCNNConfig, variables: Variables, batch: Any = None) -> dict[str, float]:
    keys = jax.random.split(jax.random.key(7), 2)
    terms, _ = _loss_terms(config, variables, jax.tree.map(jnp.asarray, batch or tiny_batch()), keys)
    return {name: float(term.value) for name, term in terms.items()}


def test_a_head_on_the_whole_image_learns_and_gives_a_map():
    variables = init(BASE, jax.random.key(0))
    assert set(variables.params) - set(init(smallest_model(), jax.random.key(0)).params) == {"foreground"}
    assert losses(BASE, variables)["loss/foreground"] == pytest.approx(np.log(2), rel=0.5)
    batch = tiny_batch()
    sizes = np.array([[64, 64], [40, 56]], np.int32)
    inputs = EvalBatch(batch.images, sizes, 2 * sizes, np.arange(2), np.ones(2, bool))
    (_, first), (_, second) = predict(BASE, variables, [inputs])
    assert first.maps["foreground"].shape == (8, 8)
    assert second.maps["foreground"].shape == (5, 7)
    assert np.all((second.maps["foreground"] > 0) & (second.maps["foreground"] < 1))


def test_the_keys_of_a_head_do_not_depend_on_other_heads():
    both = replace(BASE, heads=(NeighbourConfig(), ForegroundConfig()))
    variables, fewer = init(both, jax.random.key(0)), init(BASE, jax.random.key(0))
    logit = fewer.params["foreground"]
    params = variables.params | {"foreground": logit, "neighbour": logit}
    found = losses(both, Variables(params, variables.buffers))
    alone = losses(BASE, Variables({k: v for k, v in params.items() if k != "neighbour"}, variables.buffers))
    assert found["loss/foreground"] == pytest.approx(alone["loss/foreground"], rel=1e-6)
    assert abs(found["loss/neighbour"] - found["loss/foreground"]) > 1e-4  # of other cells


def test_heads_are_stored_with_their_settings():
    assert from_json(MaskRCNNConfig, to_json(BASE)) == BASE
    without = to_json(BASE)
    del without["heads"]  # as a checkpoint stored them before there were others
    assert from_json(MaskRCNNConfig, without) == smallest_model()
    assert override(smallest_model(), ["heads=NeighbourConfig"]).heads == (NeighbourConfig(),)
    assert override(smallest_model(), ["heads=NeighbourConfig,ForegroundConfig", "remat=neighbour"]).remat


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["heads[0].feature=p9"], r"heads\[0\]\.feature has p9, but the backbone makes res3"),
        (
            ["heads=ForegroundConfig,ForegroundConfig"],
            r"heads: ForegroundConfig and ForegroundConfig are both named foreground",
        ),
        (["heads=MaskHeadConfig"], r"heads: the name of MaskHeadConfig, mask_head, is that of another part"),
        (["remat=neighbour"], r"remat: expected some of backbone, rpn, .*, foreground, not neighbour"),
        (["heads[1].feature=res3"], r"no key heads\[1\]\.feature: heads is \[.*\], expected tuple\["),
        (["heads[0].width=3"], r"no key heads\[0\]\.width"),
        (["heads[x].width=3"], r"no key heads\[x\]"),
        (["heads.feature=res3"], r"no key heads\.feature: heads is "),
        (["pixel_mean[3]=1"], r"no key pixel_mean\[3\]: pixel_mean is "),
    ],
)
def test_what_heads_cannot_be_is_refused(assignments, message):
    with pytest.raises(UserError, match=message):
        override(BASE, assignments)


def test_one_item_of_a_tuple_can_be_set():
    assert override(BASE, ["pixel_mean[1]=3"]).pixel_mean == (127.5, 3.0, 127.5)
    with pytest.raises(UserError, match=r"pixel_mean\[1\]=x: expected float, not 'x'"):
        override(BASE, ["pixel_mean[1]=x"])


def given_boxes(boxes: Any, logits: Any = None) -> Proposals:
    boxes = jnp.asarray(boxes, jnp.float32)
    count = boxes.shape[1]
    logits = np.broadcast_to(-np.arange(count, dtype=np.float32), (2, count)) if logits is None else logits
    return Proposals(boxes, jnp.asarray(logits, jnp.float32), jnp.ones((2, count), bool))


def test_a_model_that_is_given_its_proposals_trains_and_detects_in_them():
    config = replace(GIVEN, box_head=replace(GIVEN.box_head, score_threshold=0.0))
    variables, batch = init(config, jax.random.key(0)), tiny_batch()
    assert "rpn" not in variables.params
    near = given_boxes(batch.ground_truth.boxes + np.float32(1))
    found = losses(config, variables, replace(batch, proposals=near))
    assert not any("rpn" in name for name in found)
    assert np.isfinite(found["loss/box"])
    run = jax.jit(lambda given: detect(config, variables, *map(jnp.asarray, inputs), proposals=given))
    inputs = batch.images, batch.image_sizes
    detections = run(near)
    assert detections.valid.any()
    # What is no box, or not among the best six, has no part in it.
    spoilt = [[np.nan, 0, 9, 9], [5, 5, 5, 9], [70, 0, 80, 20], [0, 0, np.inf, 9], [0, 0, 30, 30], [9, 9, 8, 8]]
    more = np.concatenate([near.boxes, np.broadcast_to(np.array(spoilt, np.float32), (2, 6, 4))], axis=1)
    logits = np.tile(np.array([0, -1, -2, -3, *[9, 9, 9, 9, np.nan, 9]], np.float32), (2, 1))
    again = run(given_boxes(more, logits))
    np.testing.assert_allclose(again.scores, detections.scores, atol=1e-6)
    np.testing.assert_allclose(again.boxes, detections.boxes, atol=1e-4)


@pytest.mark.parametrize(("train", "min_box_size"), [(True, 0.0), (False, 0.0), (True, 3.0)])
def test_given_proposals_are_those_that_detectron2_keeps(train, min_box_size):
    """By its order of steps: sorted by score, clipped, without small ones, and then so many of the best."""
    random, sizes = np.random.default_rng(0), np.array([[40, 64], [64, 30]], np.int32)
    corners = random.uniform(-10, 40, (2, 60, 2))
    boxes = np.concatenate([corners, corners + random.uniform(-2, 20, (2, 60, 2))], axis=-1).astype(np.float32)
    logits = np.stack([random.permutation(60), random.permutation(60)]).astype(np.float32) - 30
    valid = np.arange(60) < np.array([[60], [50]])
    config = GivenProposalsConfig(num_train=9, num_test=4, min_box_size=min_box_size)
    given = Proposals(*map(jnp.asarray, (boxes, logits, valid)))
    context = Context({}, {}, jnp.asarray(sizes), (64, 64), pool=lambda pooler, rois: rois, proposals=given)
    found, losses_of = GivenProposals(config).propose(context, train=train)
    assert losses_of(tiny_batch().ground_truth, None) == {}
    for i, (height, width) in enumerate(sizes):
        best = np.argsort(logits[i][valid[i]])[::-1]
        clipped = np.clip(boxes[i][best], 0, [width, height, width, height])
        kept = np.all(clipped[:, 2:] - clipped[:, :2] > min_box_size, axis=-1)
        assert 9 < kept.sum() < len(best)
        expected = [x[kept][: 9 if train else 4] for x in (clipped, logits[i][best])]
        assert found.valid[i].all()
        np.testing.assert_array_equal(found.boxes[i], expected[0])
        np.testing.assert_array_equal(found.logits[i], expected[1])


def test_proposals_that_do_not_come_are_missed():
    variables = init(GIVEN, jax.random.key(0))
    with pytest.raises(UserError, match=r"given its proposals .* but none come with the images"):
        losses(GIVEN, variables)
    assert override(smallest_model(), ["rpn=GivenProposalsConfig", "rpn.num_test=7"]).rpn.num_test == 7
    assert override(GIVEN, ["mask_head=MaskHeadConfig", "mask_head.pooler.features=res3"]).mask_head == MaskHeadConfig(
        pooler=replace(MaskHeadConfig().pooler, features=("res3",))
    )
