"""The contract of a backbone's names elsewhere: one file a backbone, and all of them in `pretrained.backbones.KNOWN`.

Paths are those below the backbone here, such as `stem/conv/kernel`; shapes are the file's, by such paths.
"""

import abc
from collections.abc import Container, Mapping
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from mask_rcnn_jax.models import BackboneConfig, NormConfig
from mask_rcnn_jax.pretrained.names.table import Table

Tensors = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
Config = TypeVar("Config", bound=BackboneConfig)


class Conventions(NamedTuple):
    """Settings that no shape of weights tells, and without which they mean nothing."""

    channel_order: str | None = None  # rgb, bgr, or unknown
    settings: Mapping[str, Any] = {}  # of the backbone's configuration


class BackboneNames(abc.ABC, Generic[Config]):
    """The names that other programs have for the layers of a backbone, and what their shapes tell of it."""

    kind: ClassVar[type[BackboneConfig]]
    title: ClassVar[str]  # of all sizes
    signs: ClassVar[str]  # a pattern of names that every file of the backbone alone has, and no other backbone's
    stages: ClassVar[tuple[str, ...]] = ()  # of which a model may have built the first few alone
    beside: ClassVar[str | None] = None  # the path of layers that its file has for a head, if the model has such layers

    @abc.abstractmethod
    def table(self, tensors: Tensors, backbone: Config) -> Table:
        """Return the names in a file of the backbone alone, and the paths below the backbone."""

    def prepared(self, tensors: Tensors) -> Tensors:
        """Return the tensors of a file of the backbone alone as the table expects them. UserError where none fits."""
        return tensors

    def may_lack(self, path: str, found: Container[str]) -> bool:
        """Tell whether a file of the backbone alone, in which the paths `found` are, may be without this one."""
        return False

    def begins_at(self, path: str) -> Literal["random", "zero", "identity"]:
        """Tell what a variable is that a file may lack, before it is trained."""
        return "random" if path.endswith(("conv/kernel", "norm/bias")) else "identity"

    def made_with(self, tensors: Tensors) -> Conventions:
        """Return what the publisher of a file of the backbone alone is known for."""
        return Conventions()

    @abc.abstractmethod
    def infer(self, shapes: Shapes, norm: NormConfig, source: str | None) -> Config | None:
        """Return the configuration with these shapes; None where they are another backbone's.

        `norm` follows convolutions, and `source` is whose detector they come from, if they come from one. Raises
        UserError where no configuration has such shapes.
        """

    @abc.abstractmethod
    def describe(self, backbone: Config) -> str:
        """Return the name of a configuration, such as ResNet-50."""

    def traits(self, backbone: Config) -> list[str]:
        """Return what else is worth saying of a configuration."""
        return []

    def conventions(self, backbone: Config) -> Mapping[str, Any]:
        """Return the settings of a configuration that no shape tells."""
        return {}

    def assumed(self, backbone: Config, key: str) -> list[str]:
        """List what Caffe2's and Detectron2's files do not tell of a configuration, which has the key `key`."""
        return []


def count(shapes: Shapes, *prefixes: str) -> int:
    """Count the numbered layers whose paths begin so."""
    names = {
        path.removeprefix(prefix).partition("/")[0] for prefix in prefixes for path in shapes if path.startswith(prefix)
    }
    return sum(name.isdigit() for name in names)
