"""A loss of three lines in place of the detector, for what a training step does whatever it trains."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from mask_rcnn_jax.models import MaskRCNNConfig, Mean, Variables
from mask_rcnn_jax.structures import Batch


def toy_variables() -> Variables:
    """A line, one parameter of a norm, and a buffer that counts the parts of batches."""
    params = {"line": {"slope": jnp.array([0.5, -0.5, 0.25]), "offset": jnp.zeros(1)}, "norm": {"scale": jnp.ones(1)}}
    return Variables(params, {"parts": jnp.float32(0)})


def toy_loss(
    model: MaskRCNNConfig, variables: Variables, batch: Batch, keys: Key[Array, " B"]
) -> tuple[dict[str, Mean], dict[str, Array]]:
    """The squared distance of an image's mean colour on the line from random numbers, once for each of its instances.

    So examples have counts of their own and random numbers of their own, and a parameter is used twice.
    """
    line, scale = variables.params["line"], variables.params["norm"]["scale"]
    colour, count = batch.images.mean(axis=(1, 2)) / 255, batch.ground_truth.valid.sum(axis=1).astype(jnp.float32)
    error = scale * (colour @ line["slope"] + colour**2 @ line["slope"] + line["offset"])
    error = error - jax.vmap(jax.random.uniform)(keys)
    terms = {"loss/line": Mean(count @ error**2, count.sum()), "error": Mean(error.sum(), jnp.float32(len(error)))}
    return terms, {"parts": variables.buffers["parts"] + 1}
