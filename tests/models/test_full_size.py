"""The published architecture at its full size: R50-FPN as COCO models have it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mask_rcnn_jax.models import FPNConfig, MaskRCNNConfig, NormConfig, ResNetConfig, abstract, detect, init


def test_parameters_are_torchvisions():
    """44,401,393 for `maskrcnn_resnet50_fpn` (its documentation), which spends 4 x 1025 more on box deltas of the
    background and 257 on its mask."""
    config = MaskRCNNConfig(num_classes=90, backbone=FPNConfig(bottom_up=ResNetConfig(depth=50, freeze_at=0)))
    params = abstract(config).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 44_401_393 - 4 * 1025 - 257


@pytest.mark.slow
def test_an_image_of_full_size_is_detected_in():
    # Untrained and with frozen norms, activations would grow from block to block until one class takes every RoI.
    backbone = FPNConfig(bottom_up=ResNetConfig(depth=50, norm=NormConfig(kind="group_norm")))
    config = MaskRCNNConfig(backbone=backbone)
    config = replace(config, box_head=replace(config.box_head, score_threshold=0.0))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (1, 800, 1088, 3), dtype=np.uint8))
    found = jax.jit(detect, static_argnums=0)(config, init(config, jax.random.key(0)), images, jnp.array([[800, 1066]]))
    assert found.masks.shape == (1, 100, 28, 28)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    boxes = np.asarray(found.boxes[0])[np.asarray(found.valid[0])]
    assert len(boxes) == 100
    assert (boxes >= 0).all()
    assert (boxes <= [1066, 800, 1066, 800]).all()
