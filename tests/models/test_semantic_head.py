"""The semantic head: by itself on features that are given, and its loss beside PyTorch's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mask_rcnn_jax.models import FPNConfig, MaskRCNNConfig, NormConfig, ResNetConfig, SemanticHeadConfig, architectures
from mask_rcnn_jax.models.backbones.base import Feature
from mask_rcnn_jax.models.context import Inputs
from mask_rcnn_jax.models.heads.semantic import semantic_losses
from mask_rcnn_jax.structures import IGNORED

SMALL = SemanticHeadConfig(
    features=("p2", "p4"), num_kinds=3, channels=8, norm=NormConfig(kind="group_norm", groups=4), loss_weight=1.0
)
INPUTS = Inputs({"p2": Feature(4, 4), "p3": Feature(4, 8), "p4": Feature(6, 16)}, num_classes=2)


def labels_of(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    labels = rng.integers(0, 3, shape).astype(np.uint8)
    labels[:, :, -5:] = IGNORED
    return labels


def test_losses_and_gradients_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 4, 3)), labels_of(rng, (2, 12, 16))
    tensor = torch.tensor(logits.transpose(0, 3, 1, 2), requires_grad=True)
    wide = torch.nn.functional.interpolate(tensor, scale_factor=4, mode="bilinear", align_corners=False)
    expected = 0.5 * torch.nn.functional.cross_entropy(wide, torch.tensor(labels).long(), ignore_index=IGNORED)
    expected.backward()

    @jax.jit
    def loss(logits):
        terms = jax.tree.map(jnp.sum, semantic_losses(logits, jnp.asarray(labels), 4, 0.5))
        return terms["loss/semantic"].value, terms["semantic/accuracy"].value

    with jax.enable_x64():
        (found, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(logits)
    assert float(found) == pytest.approx(expected.item(), rel=1e-12)
    correct = (wide.argmax(1).numpy() == labels)[labels != IGNORED]
    assert float(accuracy) == pytest.approx(correct.mean(), rel=1e-6)
    np.testing.assert_allclose(gradient, tensor.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-9, atol=1e-12)


def test_cells_of_coarse_levels_may_reach_beyond_the_image() -> None:
    """A side of 24 pixels is six cells of p2, and one and a half of p4."""
    head = SMALL.build(INPUTS, nnx.Rngs(0))
    coarse = jax.random.normal(jax.random.key(0), (1, 2, 2, 6))
    cut, whole = (head({"p2": jnp.zeros((1, side, side, 4)), "p4": coarse}) for side in (6, 8))
    np.testing.assert_allclose(cut, whole[:, :6, :6], rtol=1e-6, atol=1e-6)
    assert np.ptp(cut) > 0.01


def test_pixels_that_are_ignored_count_for_nothing() -> None:
    rng = np.random.default_rng(1)
    logits, ignored = rng.normal(size=(2, 2, 2, 3)), np.full((2, 8, 8), IGNORED, np.uint8)
    terms = semantic_losses(jnp.asarray(logits, jnp.float32), jnp.asarray(ignored), 4, 0.5)
    for term in terms.values():
        np.testing.assert_array_equal(term.total, 0)
        np.testing.assert_array_equal(term.count, 0)
        np.testing.assert_array_equal(term.value, 0)


def test_the_loss_falls_to_nothing_on_one_batch() -> None:
    rng = np.random.default_rng(2)
    shapes = {"p2": (1, 8, 8, 4), "p4": (1, 2, 2, 6)}
    features = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    labels = jnp.asarray(labels_of(rng, (1, 8, 8)).repeat(4, 1).repeat(4, 2))
    structure, params = nnx.split(SMALL.build(INPUTS, nnx.Rngs(0)))
    optimizer = optax.adam(0.03)

    @jax.jit
    def step(params, state):
        def loss(params):
            terms = semantic_losses(nnx.merge(structure, params)(features), labels, 4, 1.0)
            return terms["loss/semantic"].value[0]

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(150):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[0] > 0.8
    assert losses[-1] < 0.3 * losses[0]


def test_levels_have_a_layer_for_each_doubling_and_at_least_one() -> None:
    head = replace(SMALL, features=("p2", "p3", "p4")).build(INPUTS, nnx.Rngs(0))
    layers = sorted(name for name in vars(head) if "_conv" in name)
    assert layers == ["p2_conv1", "p3_conv1", "p4_conv1", "p4_conv2"]
    assert head.p4_conv1.conv.kernel.shape == (3, 3, 6, 8)
    # On a coarser grid, the head's own is that of its finest level.
    coarse = replace(SMALL, features=("p3", "p4")).build(INPUTS, nnx.Rngs(0))
    assert coarse.stride == 8
    assert [name for name in sorted(vars(coarse)) if "_conv" in name] == ["p3_conv1", "p4_conv1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": ("p2", "p9")}, r"heads\[0\]\.features has p9, but the backbone makes p2, p3, p4, p5, p6"),
        ({"features": ("p2", "p2")}, r"heads\[0\]\.features p2, p2 names one twice"),
    ],
)
def test_mistakes_are_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        MaskRCNNConfig(heads=(SemanticHeadConfig(**change),))


def test_channels_must_be_shared_out_among_the_groups() -> None:
    with pytest.raises(ValueError, match=r"channels 100 must be a multiple of norm\.groups 32"):
        SemanticHeadConfig(channels=100)


def test_the_architecture_is_that_of_the_model_zoo() -> None:
    """Kirillov et al. 2019, and `COCO-PanopticSegmentation/Base-Panoptic-FPN.yaml`."""
    config = architectures.panoptic_fpn(MaskRCNNConfig(backbone=FPNConfig(ResNetConfig(depth=50))))
    (head,) = config.heads
    assert isinstance(head, SemanticHeadConfig)
    assert (head.num_kinds, head.channels, head.loss_weight) == (54, 128, 0.5)
    assert (head.combine.min_score, head.combine.max_overlap, head.combine.min_stuff_area) == (0.5, 0.5, 4096)
