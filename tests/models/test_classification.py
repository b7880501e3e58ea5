"""Classes by sigmoids beside PyTorch's loss, and the classes that a federated loss counts."""

import functools
import itertools
from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.models import BoxHeadConfig, FederatedConfig, Keys, abstract, architectures, loss_terms
from mask_rcnn_jax.models.heads import box
from mask_rcnn_jax.models.heads.box import box_losses
from mask_rcnn_jax.models.heads.classification import class_loss, class_scores, draw_classes, predicted_classes
from mask_rcnn_jax.models.heads.second_stage import BoxStages, sample_rois
from mask_rcnn_jax.structures import GroundTruth, Proposals, SampledRoIs
from tests.tiny import smallest_model, tiny_batch, tiny_model

draw = jax.jit(draw_classes, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def sampled(config: BoxHeadConfig, proposals: Proposals, truth: GroundTruth, keys: Keys) -> SampledRoIs:
    return sample_rois(BoxStages((config,), (), 6), proposals, truth, keys)


def truth_of(classes: list[int], slots: int = 4) -> GroundTruth:
    """One image with objects of these classes, and padded slots."""
    valid = np.arange(slots) < len(classes)
    padded = np.zeros(slots, np.int32)
    padded[: len(classes)] = classes
    boxes = np.where(valid[:, None], np.array([4, 4, 30, 30], np.float32), np.float32(0))
    return jax.tree.map(jnp.asarray, GroundTruth(boxes, padded, np.zeros((slots, 2, 2), np.uint8), valid))


def races(count: int, num_classes: int) -> jax.Array:
    return jnp.log(jax.random.uniform(jax.random.key(0), (count, num_classes)))


@pytest.mark.parametrize("federated", [False, True])
def test_sigmoids_have_pytorchs_loss_and_gradient(torchvision: ModuleType, federated):
    """As Detectron2 sums it: over the classes that count, over the number of RoIs."""
    import torch

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 5)).astype(np.float32) * 4
    classes, valid = np.array([0, 2, 4, 4, 3, 1]), np.array([1, 1, 1, 1, 1, 0], bool)  # 4 is background
    counted = np.array([True, False, True, True]) if federated else np.ones(4, bool)
    of_rois = jnp.broadcast_to(counted, (6, 4)) if federated else None
    rois = SampledRoIs(
        jnp.zeros((6, 4)),
        jnp.zeros(6, int),
        jnp.asarray(classes),
        jnp.asarray(classes < 4),
        jnp.asarray(valid),
        of_rois,
    )
    value, gradient = jax.value_and_grad(lambda x: class_loss("sigmoid", x, rois).value)(jnp.asarray(logits))
    theirs = torch.tensor(logits[:5], requires_grad=True)
    targets = torch.nn.functional.one_hot(torch.tensor(classes[:5]), 5)[:, :4].float()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(theirs[:, :4], targets, reduction="none")
    expected = (losses * torch.tensor(counted)).sum() / 5
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(gradient[:5], theirs.grad.numpy(), atol=1e-7)
    np.testing.assert_array_equal(gradient[5:], 0)
    np.testing.assert_array_equal(gradient[:, ~np.append(counted, False)], 0)


def test_background_is_what_no_sigmoid_is_sure_of():
    logits = jnp.array([[-1.0, -2.0, 50.0], [-1.0, 0.5, 50.0], [3.0, 0.5, 50.0]])  # the last column is not trained
    np.testing.assert_array_equal(predicted_classes("sigmoid", logits), [2, 1, 0])
    np.testing.assert_array_equal(predicted_classes("softmax", logits), [2, 2, 2])
    np.testing.assert_allclose(class_scores("sigmoid", logits)[:, :2], 1 / (1 + np.exp(-logits[:, :2])), rtol=1e-6)


def test_the_box_head_takes_the_loss_of_its_setting():
    config = replace(smallest_model().box_head, class_loss="sigmoid", samples=8)
    truth = truth_of([1])
    rois = SampledRoIs(
        truth.boxes, jnp.zeros(4, int), jnp.array([1, 3, 3, 3]), truth.valid, jnp.array([True, True, False, False])
    )
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
    terms = box_losses(config, logits, jnp.zeros((4, 3, 4)), rois, truth)
    assert terms["loss/box_class"].value == class_loss("sigmoid", logits, rois).value
    assert terms["loss/box_class"].value != class_loss("softmax", logits, rois).value


def test_annotated_classes_count_and_others_up_to_the_number():
    config = FederatedConfig(num_classes=5, image_counts=(9, 9, 0, 1, 9, 9, 9, 0))
    every = jax.vmap(functools.partial(draw, config, truth_of([2, 6, 6])))(races(500, 8))
    assert np.asarray(every)[:, [2, 6]].all()  # also a class that no image is said to have
    np.testing.assert_array_equal(every.sum(axis=1), 4)  # two more, as background is the fifth
    assert not np.asarray(every)[:, 7].any()
    drawn = np.asarray(every).sum(axis=0)
    assert (drawn[[0, 1, 4, 5]] > 2 * drawn[3]).all()
    assert drawn[3] > 0
    many = draw(config, truth_of([0, 1, 4, 5, 6], slots=6), races(1, 8)[0])
    np.testing.assert_array_equal(many, [1, 1, 0, 0, 1, 1, 1, 0])
    nothing_else = draw(FederatedConfig(num_classes=50), truth_of([0]), races(1, 8)[0])
    assert nothing_else.all()


def test_classes_are_drawn_by_the_power_of_their_images_without_replacement():
    """How often each is among three is the sum over the orders in which they may be drawn one after the other."""
    counts, power, number = (1, 4, 16, 100, 25), 0.5, 20_000
    weights = np.array(counts) ** power
    expected = np.zeros(5)
    for order in itertools.permutations(range(5), 3):
        left, probability = weights.sum(), 1.0
        for index in order:
            probability *= weights[index] / left
            left -= weights[index]
        expected[list(order)] += probability
    config = FederatedConfig(num_classes=4, image_counts=counts, power=power)
    drawn = jax.vmap(functools.partial(draw, config, truth_of([])))(races(number, 5))
    error = np.sqrt(expected * (1 - expected) / number)
    np.testing.assert_array_less(abs(np.asarray(drawn).mean(axis=0) - expected), 4.5 * error)


def test_rois_are_drawn_as_without_it_and_share_the_classes_of_their_image():
    plain = replace(smallest_model().box_head, class_loss="sigmoid")
    federated = replace(plain, federated=FederatedConfig(num_classes=4))
    proposals = Proposals(
        jnp.tile(jnp.array([[[3.0, 3, 30, 30], [40, 4, 60, 20]]]), (2, 1, 1)), *[jnp.ones((2, 2))] * 2
    )
    proposals = replace(proposals, valid=jnp.ones((2, 2), bool))
    truth = jax.tree.map(lambda *x: jnp.stack(x), truth_of([1]), truth_of([0, 5]))
    keys = jax.random.split(jax.random.key(3), 2)
    for of_batch in (keys, None):
        without, found = (sampled(config, proposals, truth, of_batch) for config in (plain, federated))
        assert without.counted_classes is None
        counted = found.counted_classes
        assert counted is not None
        jax.tree.map(np.testing.assert_array_equal, replace(found, counted_classes=None), without)
        np.testing.assert_array_equal(counted, jnp.broadcast_to(counted[:, :1], counted.shape))
        np.testing.assert_array_equal(counted[:, 0].sum(axis=1), 3)
        assert counted[0, 0, 1] & counted[1, 0, 0] & counted[1, 0, 5]
    again = sampled(federated, proposals, truth, jax.random.split(jax.random.key(4), 2))
    assert not np.array_equal(again.counted_classes, counted)


def test_all_stages_of_a_cascade_see_which_classes_count(monkeypatch):
    """Traced alone."""
    seen = []

    def losses(config, class_logits, box_deltas, rois, truth):
        seen.append(rois.counted_classes)
        return box_losses(config, class_logits, box_deltas, rois, truth)

    monkeypatch.setattr(box, "box_losses", losses)
    config = architectures.cascade(replace(tiny_model(), mask_head=None))
    federated = FederatedConfig(num_classes=3)
    config = replace(config, box_head=replace(config.box_head, class_loss="sigmoid", federated=federated))
    batch, keys = tiny_batch(2), jax.random.split(jax.random.key(0), 2)
    terms, _ = jax.eval_shape(functools.partial(loss_terms, config), abstract(config), batch, keys)
    assert {"loss/box_class", "loss/box_class_stage2", "loss/box_class_stage3"} <= terms.keys()
    assert [counted.shape for counted in seen] == [(16, 6)] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"federated": FederatedConfig()}, "set class_loss=sigmoid"),
        (
            {"class_loss": "sigmoid", "federated": FederatedConfig(image_counts=(1, 2))},
            r"box_head\.federated\.image_counts must be one for each of 6 classes, not 2",
        ),
    ],
)
def test_settings_that_fit_nothing_are_refused(changes, message):
    config = smallest_model()
    with pytest.raises(ValueError, match=message):
        replace(config, box_head=replace(config.box_head, **changes))
