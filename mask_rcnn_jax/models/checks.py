"""Checks of what members make: a mistake in a file of one's own ends in a sentence that names its class.

They look at shapes and types alone, and so cost nothing in a compiled program.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models.backbones.base import BackboneConfig
from mask_rcnn_jax.models.context import Terms
from mask_rcnn_jax.models.losses import Mean
from mask_rcnn_jax.structures import PaddedDetections
from mask_rcnn_jax.value_names import check_value_names


def check_network(config: object, network: object, kind: type = nnx.Module) -> Any:
    """Return the network that a configuration has built. Raises UserError where it is none."""
    if not isinstance(network, kind):
        raise UserError(
            f"{type(config).__name__}.build returns {type(network).__name__}; return a network that derives from"
            f" {kind.__module__.partition('.')[0]}'s {kind.__name__}"
        )
    return network


def check_features(config: BackboneConfig, made: Any, padded_size: tuple[int, int]) -> Mapping[str, Any]:
    """Return what a backbone made of images. Raises UserError where that is not what its `features` say."""
    name = type(config).__name__
    if not isinstance(made, Mapping):
        raise UserError(f"the network of {name} returns {type(made).__name__}; return a dict of features by name")
    for feature, (channels, stride) in config.features.items():
        sides = tuple(-(-side // stride) for side in padded_size)
        if feature not in made:
            raise UserError(f"the network of {name} makes {', '.join(made)}, but not {feature}, which `features` names")
        if made[feature].shape[1:] != (*sides, channels):
            raise UserError(
                f"the network of {name} makes {feature} of shape [B, {', '.join(map(str, made[feature].shape[1:]))}] of"
                f" images of {padded_size[0]} x {padded_size[1]}; `features` says {channels} channels at a stride of"
                f" {stride}, [B, {sides[0]}, {sides[1]}, {channels}]"
            )
    return made


def check_terms(name: str, head: nnx.Module, before: Terms, terms: Any) -> Terms:
    """Return what a head has learnt from a batch. Raises UserError where these are not losses and measures, or have
    the names of those `before`.
    """
    said = f"{type(head).__name__}.losses, of the head {name},"
    if not isinstance(terms, dict) or not all(isinstance(term, Mean) for term in terms.values()):
        raise UserError(f"{said} returns something else than a dict of models.Mean; see masked_mean of models.losses")
    if nnx.state(head, nnx.Param) and not any(term.startswith("loss/") for term in terms):
        raise UserError(f"{said} returns no loss: begin the name of what is to be minimised with loss/")
    if twice := sorted(before.keys() & terms.keys()):
        raise UserError(f"{said} returns {', '.join(twice)}, which others return already; name its own by the head")
    return terms


def check_found(name: str, head: nnx.Module, before: PaddedDetections, found: Any) -> PaddedDetections:
    """Return what a head has laid its answer into. Raises UserError where values have no name or row of their own, or
    what was there `before` is there no more.
    """
    said = f"{type(head).__name__}.add, of the head {name},"
    if not isinstance(found, PaddedDetections):
        raise UserError(f"{said} returns {type(found).__name__}; return the detections with the answer in them")
    try:
        check_value_names([*found.extras, *found.maps])
    except UserError as error:
        raise UserError(f"{said} returns what cannot be told apart: {error}") from None
    for earlier, later in ((before.extras, found.extras), (before.maps, found.maps)):
        if lost := [key for key, value in earlier.items() if later.get(key) is not value]:
            raise UserError(f"{said} replaces {', '.join(lost)} of another head; add to what is there, by other names")
    for key, value in found.extras.items():
        if value.shape[:2] != found.valid.shape:
            raise UserError(f"{said} gives extras['{key}'] the shape {value.shape}, not {[*found.valid.shape, '...']}")
    for key, value in found.maps.items():
        if value.ndim < 3 or value.shape[0] != found.valid.shape[0]:
            raise UserError(f"{said} gives maps['{key}'] the shape {value.shape}, not [{len(found.valid)}, h, w, ...]")
    return found
