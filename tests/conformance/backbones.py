"""Rows of backbones: torchvision's features and gradients, of narrow networks with random weights, in float64."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mask_rcnn_jax.models import BackboneConfig, ConvNeXtConfig, SwinConfig, VGGConfig
from mask_rcnn_jax.models.backbones.vgg import STAGES
from mask_rcnn_jax.pretrained.backbones import find_names
from mask_rcnn_jax.pretrained.names.table import translate
from tests.conformance.rows import Row, largest_relative, relative_norms


@dataclass(frozen=True)
class Backbone:
    """A backbone and torchvision's of the same sizes."""

    config: BackboneConfig
    build: Callable[[], Any]  # torchvision's classifier
    features: Callable[[Any, Any], Mapping[str, Any]]  # of it and images: NHWC, by our names
    size: tuple[int, int] = (64, 96)


def rows(name: str) -> Iterator[Row]:
    """Every feature, and the gradient of every parameter in the sum of the last feature's squares."""
    import torch

    backbone = BACKBONES[name]
    torch.manual_seed(0)
    model = backbone.build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5 if parameter.ndim < 4 else (2 / parameter[0].numel()) ** 0.5)
    model = model.double()
    images = np.random.default_rng(0).normal(size=(2, *backbone.size, 3))
    images[:, :, 20:40] = 0.5  # where maxima are equal
    theirs = backbone.features(model.features, torch.from_numpy(images.transpose(0, 3, 1, 2)))
    last = list(backbone.config.features)[-1]
    theirs[last].square().sum().backward()
    values = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    gradients = {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}
    with jax.enable_x64(True):
        network = backbone.config.build(nnx.Rngs(0))
        network.set_attributes(dtype=jnp.float64, raise_if_not_found=False)
        weights = _ours(values, values, backbone.config)
        for path, variable in nnx.to_flat_state(nnx.state(network)):
            variable.set_value(jnp.asarray(weights.pop("/".join(map(str, path)))))
        assert not weights
        made, of_parameters = _run(network, jnp.asarray(images), last)
    ours = {"/".join(map(str, path)): np.asarray(value[...]) for path, value in nnx.to_flat_state(of_parameters)}
    pairs = ((np.asarray(made[feature]), theirs[feature].detach().numpy()) for feature in backbone.config.features)
    yield Row(name, "backbone", "every feature", largest_relative(pairs), 1e-9, "relative")
    differences = relative_norms(ours, _ours(gradients, values, backbone.config))
    yield Row(name, "backbone", "gradients, largest", max(differences.values()), 1e-8, "of the norm")


@nnx.jit(static_argnums=2)
def _run(network: Any, images: jax.Array, last: str) -> tuple[Any, Any]:
    def loss(network: Any) -> tuple[jax.Array, Any]:
        features = network(images)
        return jnp.sum(jnp.square(features[last])), features

    gradients, features = nnx.grad(loss, has_aux=True)(network)
    return features, gradients


def _ours(
    tensors: Mapping[str, np.ndarray], all_tensors: Mapping[str, np.ndarray], config: BackboneConfig
) -> dict[str, np.ndarray]:
    """The tensors, or gradients, of the backbone by our paths and in our layout."""
    names = find_names(config)
    assert names is not None
    found, unknown = translate(tensors, names.table(all_tensors, config))
    assert not unknown
    turned = {path: tensor.turned(7) for path, tensor in found.items() if not path.startswith("box_head/")}
    return {path: np.asarray(value) for path, value in turned.items()}


# --- torchvision's networks -----------------------------------------------------------------------------------------

_CONVNEXT = ConvNeXtConfig(depths=(1, 1, 2, 1), channels=(8, 12, 16, 24), layer_scale=0.5, feature_norms=False)
_SWIN = SwinConfig(depths=(2, 1, 2, 1), channels=4, heads=(1, 2, 2, 4), window=3, feature_norms=False, drop_path=0.0)
_VGG = VGGConfig(depth=11, width=4, out_features=STAGES, freeze_at=0)


def _build_vgg() -> Any:
    import torch
    from torchvision.models import vgg

    layers = [layer if isinstance(layer, str) else layer * _VGG.width // 64 for layer in vgg.cfgs["A"]]
    model = torch.nn.Module()
    model.features = vgg.make_layers(layers)
    return model


def _build_convnext() -> Any:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    following = (*_CONVNEXT.channels[1:], None)
    settings = zip(_CONVNEXT.channels, following, _CONVNEXT.depths, strict=True)
    return ConvNeXt([CNBlockConfig(*of_stage) for of_stage in settings], stochastic_depth_prob=0.0, num_classes=2)


def _build_swin() -> Any:
    from torchvision.models.swin_transformer import SwinTransformer

    sizes = [4, 4], _SWIN.channels, list(_SWIN.depths), list(_SWIN.heads), [_SWIN.window] * 2
    return SwinTransformer(*sizes, stochastic_depth_prob=0.0, num_classes=2)


def _before_pools(layers: Any, x: Any) -> dict[str, Any]:
    made = {}
    for layer in layers:
        if type(layer).__name__ == "MaxPool2d":
            made[STAGES[len(made)]] = x.permute(0, 2, 3, 1)
        x = layer(x)
    return made


def _after_stages(layers: Any, x: Any) -> list[Any]:
    """Every second layer is a stage."""
    made = []
    for layer in layers:
        x = layer(x)
        made.append(x)
    return made[1::2]


def _of_convnext(layers: Any, x: Any) -> dict[str, Any]:
    return {f"stage{i + 1}": made.permute(0, 2, 3, 1) for i, made in enumerate(_after_stages(layers, x))}


def _of_swin(layers: Any, x: Any) -> dict[str, Any]:
    return {f"stage{i + 1}": made for i, made in enumerate(_after_stages(layers, x))}


BACKBONES = {
    "torchvision vgg11, narrow-float64": Backbone(_VGG, _build_vgg, _before_pools),
    "torchvision convnext, narrow-float64": Backbone(_CONVNEXT, _build_convnext, _of_convnext),
    "torchvision swin, narrow-float64": Backbone(_SWIN, _build_swin, _of_swin, (48, 36)),
}
