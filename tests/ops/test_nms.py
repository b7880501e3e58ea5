import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from mask_rcnn_jax import ops
from mask_rcnn_jax.ops.gpu import nms as for_accelerators

nms = jax.jit(ops.nms, static_argnames=("iou_threshold", "max_outputs"))


def crowded_boxes(seed, num):
    """Boxes in clusters, so that many suppress each other; scores with ties."""
    rng = np.random.default_rng(seed)
    centers = rng.uniform(20, 180, (max(num // 8, 1), 2))[rng.integers(0, max(num // 8, 1), num)]
    centers = centers + rng.normal(0, 4, (num, 2))
    sides = rng.uniform(10, 40, (num, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).astype(np.float32)
    return boxes, rng.uniform(0, 1, num).round(2).astype(np.float32), rng.integers(0, 3, num).astype(np.int32)


def greedy(boxes, scores, valid, threshold, classes=None):
    kept = []
    for row in np.argsort(-scores, kind="stable"):
        if not valid[row]:
            continue
        for other in kept:
            if classes is not None and classes[row] != classes[other]:
                continue
            a, b = boxes[row], boxes[other]
            sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
            overlap = sides[0] * sides[1]
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
            if overlap > threshold * union:
                break
        else:
            kept.append(row)
    return kept


def rows(kept):
    return np.asarray(kept.indices)[np.asarray(kept.valid)]


@pytest.mark.parametrize("threshold", [0.3, 0.7])
@pytest.mark.parametrize("num", [1, 40, 256, 300, 700])  # less than, exactly, and more than a block
def test_agrees_with_greedy(num, threshold):
    boxes, scores, classes = crowded_boxes(num, num)
    valid = np.random.default_rng(1).uniform(0, 1, num) < 0.9
    for by_class in (None, classes):
        kept = nms(
            jnp.array(boxes),
            jnp.array(scores),
            jnp.array(valid),
            threshold,
            num,
            None if by_class is None else jnp.array(by_class),
        )
        np.testing.assert_array_equal(rows(kept), greedy(boxes, scores, valid, threshold, by_class))


def test_agrees_with_torchvision(torchvision):
    torch = pytest.importorskip("torch")
    boxes, _, _ = crowded_boxes(0, 300)
    scores = np.random.default_rng(0).permutation(300).astype(np.float32)
    kept = nms(jnp.array(boxes), jnp.array(scores), jnp.ones(300, bool), 0.5, 300)
    expected = torchvision.ops.nms(torch.tensor(boxes), torch.tensor(scores), 0.5)
    np.testing.assert_array_equal(rows(kept), expected)


def test_the_form_for_accelerators_agrees_with_greedy():
    """Sets side by side, of less than a word, more, and a chain of overlaps; a CPU runs another form."""
    sets = []
    for seed, num in ((0, 7), (1, 70), (2, 70)):
        boxes, _, classes = crowded_boxes(seed, num)
        boxes[num // 2 :: 5] = boxes[0]  # equal boxes
        alive = np.random.default_rng(seed).uniform(0, 1, num) < 0.9
        sets.append([np.pad(x, [(0, 70 - num)] + [(0, 0)] * (x.ndim - 1)) for x in (boxes, alive, classes)])
    x, zeros = np.arange(70) * 4.0, np.zeros(70)
    chain = np.stack([x, zeros, x + 10, zeros + 10], axis=1).astype(np.float32)
    sets.append([chain, np.ones(70, bool), np.zeros(70, np.int32)])
    boxes, alive, classes = (np.stack(x) for x in zip(*sets, strict=True))
    scores = -np.arange(70.0)
    for by_class in (None, classes):
        form = jax.jit(jax.vmap(functools.partial(for_accelerators.greedy, iou_threshold=0.4)))
        kept = np.asarray(form(boxes, alive, classes=by_class))
        for image in range(len(sets)):
            of_image = None if by_class is None else classes[image]
            expected = greedy(boxes[image], scores, alive[image], 0.4, of_image)
            np.testing.assert_array_equal(np.flatnonzero(kept[image]), expected)
    np.testing.assert_array_equal(np.flatnonzero(kept[-1]), np.arange(0, 70, 2))


@pytest.mark.parametrize("max_outputs", [3, 100])
def test_max_outputs_keeps_the_best_and_pads(max_outputs):
    boxes, scores, _ = crowded_boxes(3, 60)
    kept = nms(jnp.array(boxes), jnp.array(scores), jnp.ones(60, bool), 0.5, max_outputs)
    expected = greedy(boxes, scores, np.ones(60, bool), 0.5)[:max_outputs]
    np.testing.assert_array_equal(rows(kept), expected)
    assert kept.indices.shape == kept.valid.shape == (max_outputs,)
    assert not kept.indices[len(expected) :].any()


def test_a_chain_of_overlaps_takes_as_many_rounds_as_it_needs():
    # Each box overlaps only its neighbours: every second one is kept.
    x = jnp.arange(100) * 4.0
    boxes = jnp.stack([x, 0 * x, x + 10, 0 * x + 10], axis=1)
    kept = nms(boxes, -jnp.arange(100.0), jnp.ones(100, bool), 0.4, 100)
    np.testing.assert_array_equal(rows(kept), np.arange(0, 100, 2))


def test_overlap_equal_to_the_threshold_is_kept():
    boxes = jnp.array([[0.0, 0, 2, 1], [0, 0, 1, 1]])
    assert len(rows(nms(boxes, jnp.array([0.9, 0.8]), jnp.ones(2, bool), 0.5, 2))) == 2
    assert len(rows(nms(boxes, jnp.array([0.9, 0.8]), jnp.ones(2, bool), 0.49, 2))) == 1


def test_padding_changes_nothing():
    boxes, scores, _ = crowded_boxes(4, 250)
    plain = nms(jnp.array(boxes), jnp.array(scores), jnp.ones(250, bool), 0.5, 50)
    padded = nms(
        jnp.pad(jnp.array(boxes), ((0, 30), (0, 0))),
        jnp.pad(jnp.array(scores), (0, 30)),
        jnp.arange(280) < 250,
        0.5,
        50,
    )
    jax.tree.map(np.testing.assert_array_equal, plain, padded)


def test_without_boxes_nothing_is_kept():
    for num in (0, 5):
        kept = nms(jnp.zeros((num, 4)), jnp.zeros(num), jnp.zeros(num, bool), 0.5, 3)
        assert kept.valid.shape == (3,)
        assert not kept.valid.any()


def test_permuting_boxes_permutes_the_result():
    boxes, _, _ = crowded_boxes(5, 80)
    scores = np.random.default_rng(0).permutation(80).astype(np.float32)
    order = np.random.default_rng(1).permutation(80)
    plain = nms(jnp.array(boxes), jnp.array(scores), jnp.ones(80, bool), 0.5, 80)
    permuted = nms(jnp.array(boxes[order]), jnp.array(scores[order]), jnp.ones(80, bool), 0.5, 80)
    np.testing.assert_array_equal(order[rows(permuted)], rows(plain))


def test_vmap_and_shard_map_agree_with_one_image_at_a_time():
    images = [crowded_boxes(seed, 60) for seed in range(8)]
    boxes, scores, classes = (jnp.stack([jnp.array(image[i]) for image in images]) for i in range(3))
    valid = jnp.broadcast_to(jnp.arange(60), (8, 60)) < jnp.arange(20, 60, 5)[:, None]

    def one(boxes, scores, valid, classes):
        return nms(boxes, scores, valid, 0.5, 20, classes)

    mapped = jax.jit(jax.vmap(one))(boxes, scores, valid, classes)
    for image in range(8):
        expected = greedy(*(np.asarray(x[image]) for x in (boxes, scores, valid)), 0.5, np.asarray(classes[image]))[:20]
        kept = jax.tree.map(lambda x, image=image: x[image], mapped)
        np.testing.assert_array_equal(rows(kept), expected)

    devices = np.array(jax.devices())
    over_data = PartitionSpec("data")
    sharded = jax.shard_map(jax.vmap(one), mesh=Mesh(devices, ("data",)), in_specs=over_data, out_specs=over_data)
    if 8 % len(devices) == 0:
        jax.tree.map(np.testing.assert_array_equal, jax.jit(sharded)(boxes, scores, valid, classes), mapped)
