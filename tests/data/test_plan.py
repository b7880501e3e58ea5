"""Repeat factors and mixtures: Detectron2's sampler, exact shares, and nothing but seed and step decides."""

import numpy as np
import pytest

from mask_rcnn_jax.data import plan_batches, repeat_factors
from mask_rcnn_jax.data.records.packed import pack
from tests.data.test_packed import made_up_records


def by_detectron2(classes_of_images, threshold):
    """`RepeatFactorTrainingSampler.repeat_factors_from_category_frequency`, with its loops and names."""
    category_freq = {}
    for cat_ids in classes_of_images:
        for cat_id in set(cat_ids):
            category_freq[cat_id] = category_freq.get(cat_id, 0) + 1
    for k, v in category_freq.items():
        category_freq[k] = v / len(classes_of_images)
    category_rep = {k: max(1.0, (threshold / freq) ** 0.5) for k, freq in category_freq.items()}
    return [max({category_rep[cat_id] for cat_id in set(cat_ids)}, default=1.0) for cat_ids in classes_of_images]


@pytest.mark.parametrize("threshold", [0.001, 0.05, 0.3])
def test_repeat_factors_are_detectron2s(threshold):
    records = made_up_records(60)
    classes = [record.classes[~record.iscrowd].tolist() for record in records]
    np.testing.assert_allclose(repeat_factors(pack(records), threshold), by_detectron2(classes, threshold), rtol=1e-12)


def test_repeat_factors_of_the_paper():
    # t = 0.001: a class in 1 image of 10000 is repeated sqrt(10) times, one in 1 of 1000 or more once.
    records = [record for record in made_up_records(400) if len(record.classes) == 1 and not record.iscrowd[0]]
    rare = records[0].classes[0]
    alone = [record for record in records if record.classes[0] != rare]
    factors = repeat_factors([records[0], *(alone[i % len(alone)] for i in range(9999))], 0.001)
    assert factors[0] == pytest.approx(10**0.5)
    assert (factors[1:] >= 1).all()
    assert factors[1:].max() < 10**0.5


def test_whole_factors_repeat_exactly():
    repeats = np.array([1.0, 2.0, 4.0, 1.0])
    plan = plan_batches(np.zeros(4, bool), 8, 50, 0, repeats)  # an epoch is a batch
    for batch in plan:
        np.testing.assert_array_equal(np.bincount(batch, minlength=4), repeats)
    assert len({tuple(batch) for batch in plan}) > 1


def test_fractions_are_right_on_average_and_differ_by_epoch():
    repeats = np.array([1.0, 1.25, 1.5, 2.75])
    counts = np.bincount(plan_batches(np.zeros(4, bool), 13, 3000, 3, repeats).ravel(), minlength=4)
    np.testing.assert_allclose(counts / counts[0], repeats, rtol=0.02)


def test_repeating_nothing_changes_nothing():
    orientation = np.arange(30) % 3 == 0
    np.testing.assert_array_equal(plan_batches(orientation, 4, 50, 0, np.ones(30)), plan_batches(orientation, 4, 50, 0))


def test_the_plan_of_a_longer_run_begins_the_same():
    rng = np.random.default_rng(0)
    orientation, repeats = rng.random(37) < 0.3, rng.uniform(1, 3, 37)
    sources = rng.integers(0, 3, 37)
    for arguments in ((repeats,), (repeats, (sources, (1.0, 5.0, 0.3)))):
        long = plan_batches(orientation, 4, 200, 0, *arguments)
        for steps in (0, 1, 17, 90):
            np.testing.assert_array_equal(plan_batches(orientation, 4, steps, 0, *arguments), long[:steps])
        assert (plan_batches(orientation, 4, 200, 1, *arguments) != long).any()
        assert all(len(set(orientation[batch])) == 1 for batch in long)


def test_every_stretch_of_a_mixture_has_the_shares():
    sources = np.repeat([0, 1, 2], [5, 100, 20])
    weights = (3.0, 1.0, 4.0)
    plan = plan_batches(np.zeros(125, bool), 4, 1000, 0, None, (sources, weights))
    drawn = sources[plan.ravel()]
    for start, stop in ((0, 80), (8, 16), (1001, 3001), (0, 4000)):
        counts = np.bincount(drawn[start:stop], minlength=3)
        np.testing.assert_allclose(counts, (stop - start) * np.array(weights) / 8, atol=2)
    # Within a source, epochs: each record as often as the others, to one.
    for source in range(3):
        counts = np.bincount(plan.ravel(), minlength=125)[sources == source]
        assert counts.max() - counts.min() <= 1


def test_only_ratios_of_weights_count_and_a_source_may_be_empty():
    sources = np.repeat([0, 2], [5, 10])
    plans = [
        plan_batches(np.zeros(15, bool), 4, 100, 0, None, (sources, weights))
        for weights in ((1.0, 7.0, 2.0), (10.0, 0.5, 20.0))
    ]
    np.testing.assert_array_equal(*plans)
    assert np.bincount(sources[plans[0].ravel()])[2] == pytest.approx(400 * 2 / 3, abs=2)


def test_orientation_decides_neither_when_a_class_is_seen_nor_with_whom():
    # Records 0 to 59 are of a class that is mostly portrait: grouping must neither bunch it nor fix its company.
    classes = np.arange(400) < 60
    orientation = np.where(classes, np.arange(400) % 5 > 0, np.arange(400) % 5 == 0)
    plan = plan_batches(orientation, 8, 1000, 0)
    share = np.add.accumulate(classes[plan].mean(axis=1))
    for steps in (50, 100):  # an epoch has 50
        windows = (share[steps:] - share[:-steps]) / steps
        np.testing.assert_allclose(windows, classes.mean(), atol=0.06)
    for members in (np.flatnonzero(orientation), np.flatnonzero(~orientation)):
        companions = {tuple(sorted(batch)) for batch in plan if members[0] in batch}
        visits = sum(members[0] in batch for batch in plan)
        assert visits == pytest.approx(8 * 1000 / 400, abs=1)
        assert len(companions) == visits
