"""Rows of ViTDet's backbone beside Detectron2's recorded outputs. A stage is given the reference's input."""

import functools
from collections.abc import Iterator

import jax.numpy as jnp
from flax import nnx

from tests.conformance.golden import Golden, nhwc
from tests.conformance.rows import Row, largest_relative, relative


def rows(golden: Golden) -> Iterator[Row]:
    """The tokens, each block, the pyramid, and all of it."""
    row, backbone = functools.partial(Row, golden.name), golden.model.backbone
    images, tokens = jnp.asarray(nhwc(golden["batch"])), golden["tokens"]
    run = nnx.jit(lambda vit, images: vit.tokens(images))
    yield row("tokens", "patches and positions", relative(run(backbone.bottom_up, images), tokens), 1e-4, "relative")
    run = nnx.jit(lambda block, x: block(x, None))
    before = tokens
    for i in range(golden.config.backbone.bottom_up.depth):
        expected = golden[f"block_{i}"]
        ours = run(getattr(backbone.bottom_up, f"block{i + 1}"), jnp.asarray(before))
        yield row(f"block {i}", "output, given its input", relative(ours, expected), 1e-4, "relative")
        before = expected
    levels = nnx.jit(lambda pyramid, x: pyramid.levels(x))(backbone, jnp.asarray(before))
    pairs = [(levels[name], expected) for name, expected in golden.features.items()]
    yield row("simple pyramid", "every level, given the last block", largest_relative(pairs), 1e-4, "relative")
    features = nnx.jit(lambda backbone, images: backbone(images))(backbone, images)
    pairs = [(features[name], expected) for name, expected in golden.features.items()]
    yield row("features", "every level, given the image", largest_relative(pairs), 1e-4, "relative")
