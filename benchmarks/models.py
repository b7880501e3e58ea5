"""torchvision's Mask R-CNN and this project's with the same weights, and scenes to run them on.

Weights are random and calibrated on the scene itself, by `tests.conformance.reference`: both programs then process
1000 proposals and find 100 instances, as with trained weights, and agree on them.
"""

import copy
import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from mask_rcnn_jax.data.sources.shapes import texture
from mask_rcnn_jax.models import MaskRCNNConfig, Variables
from tests.conformance import reference
from tests.conformance.rows import Row
from tests.conformance.sources import imported, v1_config, v2_config

torch.set_num_threads(os.cpu_count() or 1)  # tests take one thread, which the import above has set

NUM_CLASSES = 80
# Features of coarse levels are made larger, and so are the scores there: else nearly all RoIs, of equally random
# scores, lie on the finest level, which has most anchors. With these 65 % do, and a third of the instances.
_LEVEL_FACTORS = (1.0, 1.4, 2.0, 2.6)
Size = tuple[int, int]  # (height, width), pixels


@dataclass(frozen=True, eq=False)
class Pair:
    """One architecture in both programs, in evaluation mode."""

    config: MaskRCNNConfig
    variables: Variables  # on the device
    model: nn.Module
    image: np.ndarray  # [H, W, 3] uint8, the scene that the weights are calibrated on
    formats: dict[str, nn.Module] = field(default_factory=dict)  # torchvision's model by memory format

    @property
    def size(self) -> Size:
        return self.image.shape[0], self.image.shape[1]


@functools.lru_cache(maxsize=1)
def pair(version: str, size: Size, narrowing: int = 1) -> Pair:
    """`version` "v1" or "v2" of R50-FPN, with `narrowing` times fewer channels; images are used at their size."""
    return calibrated(version, [scene(size)], narrowing, resize=lambda image, target: (image, target))


def calibrated(version: str, images: Sequence[np.ndarray], narrowing: int = 1, **transform: Any) -> Pair:
    """`version` as in `pair`, with weights calibrated on `images`; `transform` are attributes of torchvision's."""
    build, config = {"v1": (reference.maskrcnn_v1, v1_config), "v2": (reference.maskrcnn_v2, v2_config)}[version]
    model = build(NUM_CLASSES)
    for name, value in transform.items():
        setattr(model.transform, name, value)
    if narrowing > 1:
        reference.narrow(model, narrowing)
    reference.calibrate(model, images, seed=0)
    for block, factor in zip(model.backbone.fpn.layer_blocks, _LEVEL_FACTORS, strict=True):
        for parameter in block[-1].parameters():  # of the convolution, or of the norm after it
            parameter.data *= factor
    settings = config(NUM_CLASSES, narrowing)
    formats = {
        "contiguous": model,
        "channels last": copy.deepcopy(model).to(memory_format=torch.channels_last),
    }
    return Pair(settings, jax.device_put(imported(settings, model)), model, images[0], formats)


def scene(size: Size, seed: int = 0) -> np.ndarray:
    """[H, W, 3] uint8: textured rectangles of all sizes over one another."""
    rng = np.random.default_rng([seed, *size])
    side = max(size)
    image = texture(rng, side, rng.uniform(20, 235, 3)).pixels[: size[0], : size[1]].copy()
    for _ in range(40):
        height, width = (rng.uniform(0.05, 0.6, 2) ** 1.5 * size).astype(int) + 4
        top, left = (int(rng.integers(0, side - extent)) for side, extent in zip(size, (height, width), strict=True))
        patch = texture(rng, max(height, width), rng.uniform(0, 255, 3)).pixels[:height, :width]
        image[top : top + height, left : left + width] = patch
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def require(rows: Iterable[Row]) -> None:
    """Raises AssertionError where the two programs do not agree: what differs would not be comparable."""
    broken = [str(row) for row in rows if not row.ok]
    assert not broken, "\n".join(broken)
