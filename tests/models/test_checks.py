"""Mistakes in members of one's own end in sentences that name the class."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mask_rcnn_jax.config import to_json
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.models import BackboneConfig, Feature, FPNConfig, Head, HeadConfig, Mean, detect, init, loss_terms
from mask_rcnn_jax.ranges import Channels, Positive
from mask_rcnn_jax.training.start import check_heads
from tests.tiny import smallest_model, tiny_batch, tiny_experiment


@dataclass(frozen=True)
class StripesConfig(BackboneConfig):
    """Two maps of what it is told to make."""

    channels: Channels = 4
    strides: tuple[Positive, Positive] = (8, 16)
    made: Any = None

    @property
    def features(self) -> dict[str, Feature]:
        return {f"s{i}": Feature(4, stride) for i, stride in enumerate(self.strides)}

    def build(self, rngs: nnx.Rngs) -> Any:
        return Stripes(self) if self.made is None else self.made


class Stripes(nnx.Module):
    def __init__(self, config: StripesConfig):
        self.channels = config.channels

    def __call__(self, images):
        batch, height, width, _ = images.shape
        return {
            f"s{i}": jnp.ones((batch, height // stride, width // stride, self.channels))
            for i, stride in enumerate((8, 16))
        }


def with_backbone(backbone: BackboneConfig) -> Any:
    """Shapes of the detections of a model on this backbone, or on its pyramid."""
    model = smallest_model()
    names = tuple(backbone.features)[:1]
    pooler = replace(model.box_head.pooler, features=names)
    rpn, box = replace(model.rpn, features=names), replace(model.box_head, pooler=pooler)
    config = replace(model, backbone=backbone, rpn=rpn, box_head=box)
    batch = jax.tree.map(jnp.asarray, tiny_batch())
    return jax.eval_shape(
        lambda key: detect(config, init(config, key), batch.images, batch.image_sizes), jax.random.key(0)
    )


def test_a_backbone_makes_what_it_says():
    assert with_backbone(StripesConfig()).valid.shape == (2, 10)
    said = r"the network of StripesConfig makes s0 of shape \[B, 8, 8, 5\] of images of 64 x 64; `features` says 4 "
    with pytest.raises(UserError, match=said + r"channels at a stride of 8, \[B, 8, 8, 4\]"):
        with_backbone(StripesConfig(channels=5))
    with pytest.raises(UserError, match=r"`features` says 4 channels at a stride of 4, \[B, 16, 16, 4\]"):
        with_backbone(StripesConfig(strides=(4, 8)))
    with pytest.raises(UserError, match="makes s0 of shape"):  # below a pyramid, too
        with_backbone(FPNConfig(bottom_up=StripesConfig(strides=(4, 8)), channels=8))
    with pytest.raises(ValueError, match=r"strides of bottom_up must be powers of 2, .* not s0 6, s1 12"):
        FPNConfig(bottom_up=StripesConfig(strides=(6, 12)))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (nnx.Linear(3, 3, rngs=nnx.Rngs(0)), r"the network of StripesConfig returns .*; return a dict of features"),
        (3, r"StripesConfig\.build returns int; return a network that derives from flax's Module"),
    ],
)
def test_what_is_no_backbone_is_refused(made, message):
    with pytest.raises(UserError, match=message):
        with_backbone(StripesConfig(made=made))


@dataclass(frozen=True)
class OddConfig(HeadConfig):
    """A head with the mistake that it is told to make."""

    name: ClassVar[str] = "odd"

    mistake: str = ""

    def build(self, inputs: Any, rngs: nnx.Rngs) -> Any:
        return nnx.Linear(1, 1, rngs=rngs) if self.mistake == "no head" else Odd(self, rngs)


class Odd(Head):
    def __init__(self, config: OddConfig, rngs: nnx.Rngs):
        self.mistake, self.scale = config.mistake, nnx.Param(jnp.ones(()))

    def losses(self, context, rois, truth, keys):
        total = jnp.sum(rois.valid * self.scale[...], axis=1)
        match self.mistake:
            case "no mean":
                return {"odd": total}
            case "of the boxes":
                return {"loss/box": Mean(total, jnp.ones_like(total))}
        return {}

    def answer(self, context, found):
        return found.scores * self.scale[...]

    def add(self, found, answer):
        match self.mistake:
            case "nothing":
                return answer
            case "taken":
                return replace(found, extras={"scores": answer})
            case "turned":
                return replace(found, extras={"odd": answer.T})
            case "flat":
                return replace(found, maps={"odd": answer})
        return replace(found, extras={"odd": answer})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("no head", r"OddConfig\.build returns Linear; return a network that derives from mask_rcnn_jax's Head"),
        ("nothing", r"Odd\.add, of the head odd, returns .*; return the detections with the answer in them"),
        ("taken", r"Odd\.add, of the head odd, .* calls a value 'scores', which is the name of another"),
        ("turned", r"gives extras\['odd'\] the shape \(10, 2\), not \[2, 10, '\.\.\.'\]"),
        ("flat", r"gives maps\['odd'\] the shape \(2, 10\), not \[2, h, w, \.\.\.\]"),
    ],
)
def test_what_a_head_adds_is_checked_before_the_first_step(mistake, message, tmp_path):
    config = tiny_experiment(tmp_path, model=replace(smallest_model(), heads=(OddConfig(),)))
    check_heads(config)
    with pytest.raises(UserError, match=message):
        check_heads(replace(config, model=replace(config.model, heads=(OddConfig(mistake=mistake),))))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("no mean", r"Odd\.losses, of the head odd, returns something else than"),
        ("", r"returns no loss: begin"),
        ("of the boxes", r"Odd\.losses, of the head odd, returns loss/box, which others return already"),
    ],
)
def test_what_a_head_learns_is_checked(mistake, message):
    config = replace(smallest_model(), heads=(OddConfig(mistake=mistake),))
    batch = jax.tree.map(jnp.asarray, tiny_batch())
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda key: loss_terms(config, init(config, key), batch, None)[0], jax.random.key(0))


def test_settings_that_are_no_fields_are_refused():
    class Careless(OddConfig):
        width: int = 3

    class Sober(OddConfig):
        name: ClassVar[str] = "sober"

    with pytest.raises(UserError, match=r"Careless is no dataclass of its own; put @dataclass\(frozen=True\) above it"):
        to_json(replace(smallest_model(), heads=(Careless(),)))
    assert to_json(replace(smallest_model(), heads=(Sober(),)))["heads"][0]["type"] == "Sober"


@dataclass(frozen=True)
class NamelessConfig(OddConfig):
    name: ClassVar[Any] = None


@dataclass(frozen=True)
class NeedyConfig(OddConfig):
    needs: ClassVar[Any] = "mask"


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (OddConfig(), r"heads is a tuple of configurations of heads, such as \(FillConfig\(\),\), not OddConfig"),
        ((NamelessConfig(),), r"NamelessConfig has no name; give it one"),
        ((NeedyConfig(),), r"NeedyConfig\.needs is 'mask', and may be 'masks', 'keypoints', 'semantic' or None"),
    ],
)
def test_heads_are_checked_when_they_are_configured(heads, message):
    with pytest.raises(ValueError, match=message):
        replace(smallest_model(), heads=heads)


@dataclass(frozen=True)
class TwinConfig(OddConfig):
    name: ClassVar[str] = "twin"


def test_heads_do_not_replace_what_others_add(tmp_path):
    config = tiny_experiment(tmp_path, model=replace(smallest_model(), heads=(OddConfig(), TwinConfig())))
    with pytest.raises(UserError, match=r"Odd\.add, of the head twin, replaces odd of another head"):
        check_heads(config)
