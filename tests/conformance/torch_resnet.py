"""Detectron2's backbones in PyTorch's own operations, from a state dict with its names.

They repeat the recorded features bit for bit on the machine that recorded them, or nearly, and show two things that a
recording does not: what each stage was given, and how far the reference lies from itself with other kernels.
"""

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F

from mask_rcnn_jax.models import FPNConfig, ResNetConfig
from mask_rcnn_jax.models.backbones.resnet import BLOCKS, STAGES


class TorchBackbone:
    """A ResNet, with a feature pyramid where the configuration has one; tensors are NCHW."""

    def __init__(self, weights: Mapping[str, np.ndarray], config: FPNConfig | ResNetConfig):
        self.weights = {name: torch.from_numpy(value) for name, value in weights.items()}
        self.fpn = isinstance(config, FPNConfig)
        self.config = config.bottom_up if isinstance(config, FPNConfig) else config
        self.prefix = "backbone.bottom_up." if self.fpn else "backbone."

    def __call__(self, images: np.ndarray, *, onednn: bool = True) -> dict[str, np.ndarray]:
        """What leaves the stem ("stem"), each stage ("res2", ...), and the pyramid ("p2", ...)."""
        with torch.no_grad(), _kernels(onednn):
            outputs = {"stem": self._stem(torch.from_numpy(images))}
            x = outputs["stem"]
            for name in self.config.stages:
                x = outputs[name] = self._stage(name, x)
            if self.fpn:
                outputs |= self._pyramid(outputs)
        return {name: output.numpy() for name, output in outputs.items()}

    def _stem(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self._conv_norm(images, self.prefix + "stem.conv1", stride=2, padding=3))
        return F.max_pool2d(x, 3, 2, 1)

    def _stage(self, name: str, x: torch.Tensor) -> torch.Tensor:
        config = self.config
        dilation = config.res5_dilation if name == "res5" else 1
        for block in range(BLOCKS[config.depth][STAGES.index(name)]):
            prefix = f"{self.prefix}{name}.{block}."
            stride = 2 if block == 0 and name != "res2" and dilation == 1 else 1
            strides = (stride, 1) if config.stride_in_1x1 else (1, stride)
            shortcut = self._conv_norm(x, prefix + "shortcut", stride=stride) if block == 0 else x
            y = F.relu(self._conv_norm(x, prefix + "conv1", stride=strides[0]))
            y = self._conv_norm(
                y, prefix + "conv2", stride=strides[1], padding=dilation, dilation=dilation, groups=config.groups
            )
            x = F.relu(self._conv_norm(F.relu(y), prefix + "conv3") + shortcut)
        return x

    def _pyramid(self, bottom_up: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs, coarser = {}, None
        for level in (5, 4, 3, 2):
            x = self._conv(bottom_up[f"res{level}"], f"backbone.fpn_lateral{level}")
            coarser = x if coarser is None else x + F.interpolate(coarser, scale_factor=2.0, mode="nearest")
            outputs[f"p{level}"] = self._conv(coarser, f"backbone.fpn_output{level}", padding=1)
        return outputs | {"p6": outputs["p5"][:, :, ::2, ::2]}

    def _conv(self, x: torch.Tensor, name: str, **settings: int) -> torch.Tensor:
        return F.conv2d(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"), **settings)

    def _conv_norm(self, x: torch.Tensor, name: str, **settings: int) -> torch.Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        statistics = (self.weights[f"{name}.norm.{key}"] for key in keys)
        return F.batch_norm(self._conv(x, name, **settings), *statistics, training=False, eps=1e-5)


@contextlib.contextmanager
def _kernels(onednn: bool) -> Iterator[None]:
    """Convolutions with oneDNN's kernels, or with PyTorch's own."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = onednn
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
