"""The training step: the same on any number of devices, and able to learn."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import DATA_AXIS, NormConfig
from mask_rcnn_jax.training import AdamWConfig, CosineDecay, ExperimentConfig, ScheduleConfig
from mask_rcnn_jax.training.step import TrainState, init_state, make_mesh, make_train_step, replicate, shard
from tests.programs import count_exact_products
from tests.tiny import tiny_batch, tiny_experiment, tiny_model


def mesh_of(devices: int) -> Mesh:
    if jax.device_count() < devices:
        pytest.skip(f"needs {devices} devices")
    return Mesh(jax.devices()[:devices], (DATA_AXIS,))


def run(config: ExperimentConfig, devices: int, steps: int):
    mesh = mesh_of(devices)
    state, step_fn = replicate(init_state(config), mesh), make_train_step(config, mesh)
    history = []
    for step in range(steps):
        batch = tiny_batch(config.batch_size, seed=step)
        batch = replace(batch, example_index=np.arange(config.batch_size, dtype=np.int32) + step * config.batch_size)
        state, measures = step_fn(state, shard(batch, mesh))
        history.append({name: float(value) for name, value in measures.items()})
    return jax.device_get(state), history


def largest_difference(state: TrainState, reference: TrainState) -> float:
    """Of any tensor of the variables, relative to its largest value."""
    leaves = zip(jax.tree.leaves(state.variables), jax.tree.leaves(reference.variables), strict=True)
    return max(float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-6)) for a, b in leaves)


@pytest.mark.parametrize("kind", ["group_norm", "batch_norm"])
def test_eight_devices_train_like_one(kind):
    """Losses use global counts, gradients are summed once, sampling follows the example, batch norm is synchronised."""
    norm = NormConfig(kind=kind, groups=4)
    config = tiny_experiment(Path("unused"), model=tiny_model(norm))
    (one, history_of_one), (eight, history_of_eight) = run(config, 1, 3), run(config, 8, 3)
    for a, b in zip(history_of_one, history_of_eight, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=2e-4, abs=1e-5), name
    for path, a in jax.tree_util.tree_leaves_with_path(one.variables):
        b = eight.variables
        for key in path:
            b = getattr(b, key.name) if hasattr(key, "name") else b[key.key]
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    assert int(one.step) == 3


def test_one_batch_can_be_learnt_by_heart():
    config = tiny_experiment(
        Path("unused"),
        model=tiny_model(),
        batch_size=2,
        steps=3000,
        seed=1,
        optimizer=AdamWConfig(weight_decay=0.0, clip_norm=1.0),
        schedule=ScheduleConfig(learning_rate=1e-3, warmup_steps=10, decay=CosineDecay()),
    )
    mesh = mesh_of(1)
    state, step_fn = replicate(init_state(config), mesh), make_train_step(config, mesh)
    batch = shard(tiny_batch(2), mesh)
    losses = []
    for _ in range(config.steps):
        state, measures = step_fn(state, batch)
        losses.append(float(measures["loss"]))
    assert losses[0] > 2
    # Each step samples other RoIs, so single losses vary. Measured means are .003 with this seed; with seed 0 rounding
    # decides whether one class stays wrong: .006 on one virtual device, .081 on eight.
    assert np.mean(losses[-100:]) < 0.05


def test_the_step_descends_along_the_gradient_of_the_reported_loss():
    config = tiny_experiment(Path("unused"), model=tiny_model(), batch_size=2)
    _, history = run(config, 1, 1)
    parts = sum(value for name, value in history[0].items() if name.startswith("loss/"))
    assert history[0]["loss"] == pytest.approx(parts, rel=1e-5)
    assert history[0]["gradient_norm"] > 0
    assert history[0]["learning_rate"] == pytest.approx(0.01 * 0.001, rel=1e-4)


# Few proposals, and a seed: where a proposal lies within rounding of a threshold, or an activation of zero, what
# follows is not rounding. Of the seeds 0 to 4 all but this one have such a case on two, four or eight devices.
FEW = replace(tiny_model(), rpn=replace(tiny_model().rpn, pre_nms_train=8, post_nms_train=8))
TWENTY_STEPS = tiny_experiment(Path("unused"), model=FEW, steps=20, seed=4)


@pytest.fixture(scope="module")
def twenty_steps_of_one_device():
    return run(TWENTY_STEPS, 1, 20)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_twenty_steps_agree_on_any_number_of_devices(devices, twenty_steps_of_one_device):
    one, history_of_one = twenty_steps_of_one_device
    several, history = run(TWENTY_STEPS, devices, 20)
    for a, b in zip(jax.tree.leaves(several.variables), jax.tree.leaves(one.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    for a, b in zip(history_of_one, history, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


def test_twenty_steps_of_float64_agree():
    config = tiny_experiment(Path("unused"), model=replace(tiny_model(), dtype="float64"), steps=20)
    with jax.enable_x64(True):
        (one, history_of_one), (four, history) = run(config, 1, 20), run(config, 4, 20)
    for a, b in zip(jax.tree.leaves(four.variables), jax.tree.leaves(one.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # they stay float32
    for a, b in zip(history_of_one, history, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("devices", "parts"), [(2, 4)])
def test_parts_of_a_batch_train_like_the_whole(devices, parts):
    config = tiny_experiment(Path("unused"), model=tiny_model())
    (whole, history), (added, history_of_parts) = (
        run(config, 1, 3),
        run(replace(config, accumulation_steps=parts), devices, 3),
    )
    assert largest_difference(added, whole) < 1e-5
    for a, b in zip(history, history_of_parts, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_cross_devices_once_and_never_in_a_loop(parts):
    config = tiny_experiment(Path("unused"), model=tiny_model(), accumulation_steps=parts)
    mesh = mesh_of(2)
    inputs = replicate(init_state(config), mesh), shard(tiny_batch(8), mesh)
    program = make_train_step(config, mesh).lower(*inputs).compile().as_text()
    # The entry computation is the one that no loop repeats.
    outside, entry = program.split("\nENTRY ")
    collective = re.compile(r"= (.*) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(")
    assert not collective.search(outside)
    counts, gradients = sorted(collective.findall(entry), key=len)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(inputs[0].variables.params)]
    # A shortcut's bias has the gradient of the bias beside it, and XLA may sum it once for both.
    alone = [name for name in names if not ("shortcut" in name and "bias" in name)]
    assert gradients.count("f32[") >= len(alone) > len(names) - 10
    assert re.fullmatch(r"f32\[\d\d?\]\{0\}", counts)  # less than a hundred sums of losses and counts


def test_the_step_lowers_for_gpu_and_tpu():
    config, mesh = tiny_experiment(Path("unused"), model=tiny_model()), mesh_of(2)
    inputs = replicate(init_state(config), mesh), shard(tiny_batch(8), mesh)
    lowered = jax.export.export(make_train_step(config, mesh), platforms=("cuda", "tpu"))(*inputs)
    assert (lowered.platforms, lowered.nr_devices) == (("cuda", "tpu"), 2)


@pytest.fixture(scope="module")
def traced_step():
    config, mesh = tiny_experiment(Path("unused"), model=tiny_model()), mesh_of(1)
    assert config.model.backbone.bottom_up.freeze_at == 0  # the gradient passes the stem's pool
    return make_train_step(config, mesh).trace(jax.eval_shape(lambda: init_state(config)), tiny_batch(8))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_only_layers_round_in_products_of_a_step(traced_step, platform):
    # RoIAlign of two poolers on four levels, forward and backward, deltas of classes, masks of classes, mask targets.
    assert count_exact_products(traced_step.lower(lowering_platforms=(platform,))) > 2 * 4 * 4


def test_the_step_for_gpu_adds_nothing_in_any_order(traced_step):
    """Of all that a step does a GPU leaves open only the order in which it writes what is scattered to one place."""
    program = traced_step.lower(lowering_platforms=("cuda",)).as_text()
    assert "select_and_scatter" not in program
    scatters = program.split('"stablehlo.scatter"')[1:]
    assert scatters  # or the text is no longer what is searched here
    for scatter in scatters:
        arguments, combination = scatter.partition("stablehlo.return")[0].split("({", 1)
        steps = re.findall(r"stablehlo\.(\w+)", combination)
        assert steps == ["maximum"] or (steps == [] and "unique_indices = true" in arguments), scatter[:1000]


def test_networks_that_are_computed_again_learn_the_same():
    config = tiny_experiment(Path("unused"), model=tiny_model(), batch_size=2)
    computed_again = replace(config, model=replace(config.model, remat=("backbone", "rpn", "box_head", "mask_head")))
    (kept, _), (computed, _) = run(config, 1, 1), run(computed_again, 1, 1)
    assert largest_difference(computed, kept) < 1e-4
    inputs = init_state(config), tiny_batch(2)
    programs = [str(jax.make_jaxpr(make_train_step(c, mesh_of(1)))(*inputs)) for c in (config, computed_again)]
    kept, computed = (len(re.findall(r"\b(?:remat2?|checkpoint)\[", program)) for program in programs)
    assert kept == 0
    assert computed >= 8 + 3  # the blocks of a ResNet-18, and the heads


def test_an_average_of_the_weights_follows_them():
    config = tiny_experiment(Path("unused"), model=tiny_model(), ema_decay=0.75, batch_size=2)
    states = [run(config, 1, steps)[0] for steps in (1, 2)]
    params = [jax.device_get(init_state(config).variables.params), *(state.variables.params for state in states)]
    expected = jax.tree.map(lambda x, y, z: 0.75 * (0.75 * x + 0.25 * y) + 0.25 * z, *params)
    for a, b in zip(jax.tree.leaves(states[1].average), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert states[1].averaged().params is states[1].average


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 3}, r"batch_size=3 cannot be shared equally by \d+ devices; make it a multiple of \d+"),
        ({"accumulation_steps": 5}, r"batch_size=8 cannot .* devices in accumulation_steps=5; make it a multiple"),
        ({"images_per_device": 3}, r"batch_size=8 is not \d+ devices \* images_per_device=3 \* accumulation_steps=1 ="),
    ],
)
def test_a_batch_that_devices_cannot_share_is_refused(changes, message):
    if jax.device_count() == 1:
        pytest.skip("one device shares every batch")
    with pytest.raises(UserError, match=message):
        make_mesh(tiny_experiment(Path("unused"), **changes))


def test_same_seed_same_bits():
    config = tiny_experiment(Path("unused"), model=tiny_model(), batch_size=2)
    (first, _), (again, _) = run(config, 1, 2), run(config, 1, 2)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, again)), strict=True))
    other, _ = run(replace(config, seed=1), 1, 2)
    assert not all(
        jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True) if a.ndim > 1
    )
