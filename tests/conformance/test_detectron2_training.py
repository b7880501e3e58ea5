"""Losses and norms of gradients of each recorded Detectron2 model stay within the bounds of the conformance report."""

import functools
import operator

import pytest

from tests.conformance import needed

needed.torchvision()

from mask_rcnn_jax.training import AdamWConfig, ExperimentConfig  # noqa: E402
from mask_rcnn_jax.training.hyperparameters import learning_rate_factors  # noqa: E402
from tests.conformance import detectron2  # noqa: E402
from tests.conformance.golden import NAMES, Golden  # noqa: E402

# C4 and the cascade have both kinds of backbone; DC5 and X101 differ in ResNet's convolutions, and the gradient of
# keypoints is compared with torchvision's in tests/models/test_keypoint_head.py. Where every sample is kept, all of
# ViTDet's levels have gradients; they and those of the others are slow.
QUICK = (("c4", ""), ("cascade", ""))
RUNS = [*((name, "") for name in NAMES), ("vitdet", "all"), ("panoptic_fpn", "all"), ("detectron1", "all")]
CASES = [pytest.param(*run, marks=[] if run in QUICK else [pytest.mark.slow]) for run in RUNS]


@pytest.mark.parametrize(("name", "run"), CASES)
def test_losses_and_gradients_are_those_of_the_reference(name, run, shared):
    golden = Golden(shared, name)
    rows = list(detectron2.training_rows(golden, detectron2.runs_of(golden)[run]))
    assert rows
    assert not [str(row) for row in rows if not row.ok]


def test_learning_rates_fall_from_layer_to_layer_as_the_references(shared):
    golden = Golden(shared, "vitdet")
    paths = detectron2.path_of_name(golden)
    factors = learning_rate_factors(ExperimentConfig(model=golden.config, optimizer=AdamWConfig(layer_decay=0.7)))
    for name, expected in golden.json["lr_factors"].items():
        found = functools.reduce(operator.getitem, paths[name].split("/"), factors)
        assert found == pytest.approx(expected, rel=1e-6), name
