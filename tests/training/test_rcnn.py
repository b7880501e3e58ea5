"""R-CNN by the ordinary way: a small network on crops is trained with a softmax, then frozen under SVMs."""

import json
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from flax import nnx

from mask_rcnn_jax.data import ProposalFilesConfig
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import Predictor, load_model
from mask_rcnn_jax.models import (
    BackboneConfig,
    BoxHeadConfig,
    Feature,
    HingeConfig,
    NormConfig,
    ResNetConfig,
    WarpConfig,
    architectures,
)
from mask_rcnn_jax.models.layers import ConvNorm, Kernel
from mask_rcnn_jax.training import CosineDecay, ScheduleConfig, train
from tests.tiny import tiny_experiment, tiny_model
from tests.training.test_proposals import losses, write_near_boxes


@dataclass(frozen=True)
class SmallConfig(BackboneConfig):
    """Three convolutions, each of which halves the sides."""

    @property
    def features(self) -> dict[str, Feature]:
        return {"conv3": Feature(32, 8)}

    def build(self, rngs: nnx.Rngs) -> "Small":
        return Small(rngs)


class Small(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        for i, (before, after) in enumerate(((3, 8), (8, 16), (16, 32)), 1):
            setattr(self, f"conv{i}", ConvNorm(before, after, Kernel(3, 2), norm=NormConfig(kind="none"), rngs=rngs))

    def __call__(self, images):
        for name in ("conv1", "conv2", "conv3"):
            images = jax.nn.relu(getattr(self, name)(images))
        return {"conv3": images}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run with a softmax on shapes, and its configuration."""
    root = tmp_path_factory.mktemp("rcnn")
    tiny = tiny_model()
    box_head = BoxHeadConfig(WarpConfig(output_size=24, context=2), fc_channels=32, samples=16, max_detections=10)
    model = replace(
        architectures.rcnn(ResNetConfig(), 6),
        trunk=SmallConfig(),
        box_head=replace(box_head, nms_iou=0.3),
        pixel_mean=tiny.pixel_mean,
        pixel_std=tiny.pixel_std,
    )
    schedule = ScheduleConfig(learning_rate=0.03, warmup_steps=4, decay=CosineDecay())
    config = tiny_experiment(root, model=model, steps=24, schedule=schedule)
    config.data.source.prepare()
    for split in ("train", "val"):
        write_near_boxes(root / f"{split}.npz", config.data.source.load(split).records)
    files = ProposalFilesConfig(str(root / "{split}.npz"), str(root / "{split}.npz"), slots=24)
    config = replace(config, data=replace(config.data, proposals=files))
    return config, root / "softmax", train(config, root / "softmax")


def test_it_learns_to_tell_crops_apart(tuned):
    _, workdir, metrics = tuned
    classes = losses(workdir, "loss/box_class")
    assert len(classes) == 24
    assert np.mean(classes[-4:]) < 0.8 * np.mean(classes[:4])
    assert metrics["bbox/AP50"] > 0.05  # of random boxes about nothing


def test_svms_are_trained_on_the_frozen_network(tuned, tmp_path):
    config, workdir, _ = tuned
    head = config.model.box_head
    head = replace(head, class_loss="hinge", hinge=HingeConfig(hard_negatives=4), foreground_iou=0.99)
    frozen = ("trunk", "box_head/fc1", "box_head/fc2", "box_head/box_deltas")
    model = replace(config.model, box_head=head, freeze=frozen)
    metrics = train(replace(config, model=model, pretrained=str(workdir), steps=16), tmp_path / "svm")
    learnt = losses(tmp_path / "svm", "loss/box_class")
    assert np.mean(learnt[-4:]) < 0.8 * np.mean(learnt[:4])
    assert metrics["bbox/AP50"] > 0.05
    before, after = (load_model(path).variables for path in (workdir, tmp_path / "svm"))
    for path in frozen:
        parts = [before.params, after.buffers]
        for name in path.split("/"):
            parts = [part[name] for part in parts]
        jax.tree.map(np.testing.assert_array_equal, *parts)
    assert list(after.params) == ["box_head"]
    assert list(after.params["box_head"]) == ["class_logits"]
    kernels = (run.params["box_head"]["class_logits"]["kernel"] for run in (before, after))
    assert np.abs(np.subtract(*kernels))[:, :6].max() > 1e-3
    written = json.loads((tmp_path / "svm" / "config.json").read_text())
    assert written["model"]["trunk"]["type"] == "SmallConfig"


def test_images_alone_have_no_proposals(tuned):
    with pytest.raises(UserError, match="images alone have none"):
        Predictor.from_checkpoint(tuned[1])
