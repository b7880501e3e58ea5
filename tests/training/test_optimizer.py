"""Schedules and optimizers against their formulas, step by step."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.models import Variables, ViTConfig, architectures
from mask_rcnn_jax.training import AdamWConfig, CosineDecay, ScheduleConfig, SGDConfig, StepDecay
from mask_rcnn_jax.training.hyperparameters import hyperparameters, learning_rate_factors
from mask_rcnn_jax.training.step import apply_gradients, init_state
from tests.tiny import tiny_experiment

PARAMS = {
    "conv": {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])},
    "norm": {"scale": jnp.array([3.0])},
    "attention": {"positions": jnp.array([2.0])},
}
GRADIENTS = {
    "conv": {"kernel": jnp.array([0.1, 0.2]), "bias": jnp.array([-0.3])},
    "norm": {"scale": jnp.array([0.4])},
    "attention": {"positions": jnp.array([0.5])},
}
SPARED = ((("norm", "scale"), 0.0), (("attention", "positions"), 0.0))


def test_step_decay_with_warmup_is_detectron2s():
    schedule = ScheduleConfig(0.02, warmup_steps=1000, warmup_factor=0.001).build(90_000)
    # WarmupMultiStepLR of detectron2 0.6: the factor goes linearly from .001 at step 0 to 1 at step 1000.
    expected = {0: 0.00002, 500: 0.01001, 1000: 0.02, 59_999: 0.02, 60_000: 0.002, 80_000: 0.0002, 89_999: 0.0002}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5), step


def test_cosine_decay():
    schedule = ScheduleConfig(1.0, warmup_steps=0, decay=CosineDecay(final_factor=0.1)).build(100)
    for step in (0, 25, 50, 100, 120):
        expected = 0.1 + 0.9 * (1 + np.cos(np.pi * min(step / 100, 1))) / 2
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-6)


def run(config, rate=0.1, steps=3, factors=None):
    optimizer = config.at(rate, factors).build()
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(GRADIENTS, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.mark.parametrize("optimizer", [SGDConfig(momentum=0.0, weight_decay=0.0), AdamWConfig(weight_decay=0.0)])
def test_the_learning_rate_used_is_the_reported_one_after_skipped_steps(optimizer):
    """With one gradient throughout, SGD moves by the rate and Adam by close to it, whatever was skipped before."""
    schedule = ScheduleConfig(0.1, warmup_steps=5, decay=StepDecay(milestones=()))
    config = tiny_experiment(Path("unused"), optimizer=optimizer, schedule=schedule, max_skipped_steps=2)
    state = init_state(config, Variables({"net": {"kernel": jnp.zeros(1)}}, {}))
    gradients = {"net": {"kernel": jnp.ones(1)}}
    given = jax.jit(partial(hyperparameters, config))
    apply = jax.jit(lambda given, state, loss: apply_gradients(given, state, loss, gradients, {}))
    moved, reported = [], []
    for loss in (1.0, np.nan, np.nan, 1.0, 1.0):
        before = state.variables.params["net"]["kernel"]
        state, measures = apply(given(state.step), state, jnp.float32(loss))
        moved.append(float((before - state.variables.params["net"]["kernel"])[0]))
        reported.append(float(measures["learning_rate"]))
    rates = [float(schedule.build(config.steps)(step)) for step in range(5)]
    np.testing.assert_allclose(reported, rates, rtol=1e-6)
    np.testing.assert_allclose(moved, [rates[0], 0, 0, rates[3], rates[4]], rtol=1e-4)


def test_sgd_is_pytorchs_and_spares_norms_and_positions():
    found = run(SGDConfig(momentum=0.9, weight_decay=0.01))
    for path, decay in ((("conv", "kernel"), 0.01), (("conv", "bias"), 0.01), *SPARED):
        value = np.asarray(PARAMS[path[0]][path[1]], np.float64)
        gradient, momentum = np.asarray(GRADIENTS[path[0]][path[1]], np.float64), 0.0
        for _ in range(3):
            momentum = 0.9 * momentum + gradient + decay * value
            value = value - 0.1 * momentum
        np.testing.assert_allclose(found[path[0]][path[1]], value, rtol=1e-6)


def test_adamw_decays_outside_the_gradient():
    found = run(AdamWConfig(weight_decay=0.01))
    for path, decay in ((("conv", "kernel"), 0.01), *SPARED):
        value = np.asarray(PARAMS[path[0]][path[1]], np.float64)
        gradient, first, second = np.asarray(GRADIENTS[path[0]][path[1]], np.float64), 0.0, 0.0
        for step in range(1, 4):
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            update = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            value = value - 0.1 * (update + decay * value)
        np.testing.assert_allclose(found[path[0]][path[1]], value, rtol=1e-5)


@pytest.mark.parametrize("config", [SGDConfig(), AdamWConfig()], ids=["SGD", "AdamW"])
def test_factors_scale_the_rate_of_a_parameter_with_its_decay(config):
    factors = {"conv": {"kernel": 0.25, "bias": 1.0}, "norm": {"scale": 0.5}, "attention": {"positions": 0.1}}
    for name, of_layer in factors.items():
        for leaf, factor in of_layer.items():
            scaled, plain = run(config, factors=factors), run(config, rate=0.1 * factor)
            np.testing.assert_allclose(scaled[name][leaf], plain[name][leaf], rtol=1e-6)


def test_a_rate_that_decays_from_layer_to_layer_needs_layers():
    vit = ViTConfig(channels=8, depth=2, heads=2, global_blocks=(1,))
    model = replace(architectures.vitdet(vit), mask_head=None)
    config = tiny_experiment(Path("unused"), model=model, optimizer=AdamWConfig(layer_decay=0.5))
    factors = learning_rate_factors(config)
    below = factors["backbone"].pop("bottom_up")
    assert set(jax.tree.leaves(factors)) == {1}
    assert {name: set(jax.tree.leaves(part)) for name, part in below.items()} == {
        "patches": {0.125},
        "positions": {0.125},
        "block1": {0.25},
        "block2": {0.5},
    }
    assert learning_rate_factors(replace(config, optimizer=AdamWConfig())) is None
    with pytest.raises(ValueError, match=r"optimizer\.layer_decay 0\.5 needs a backbone that numbers its layers"):
        tiny_experiment(Path("unused"), optimizer=SGDConfig(layer_decay=0.5))


def test_clipping_scales_the_whole_gradient():
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(GRADIENTS)))
    plain = run(SGDConfig(weight_decay=0.0, momentum=0.0), steps=1)
    clipped = run(SGDConfig(weight_decay=0.0, momentum=0.0, clip_norm=norm / 4), steps=1)
    for start, a, b in zip(*map(jax.tree.leaves, (PARAMS, plain, clipped)), strict=True):
        np.testing.assert_allclose(b - start, (a - start) / 4, rtol=1e-4)
