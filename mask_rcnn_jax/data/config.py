"""Settings of the `data` layer: what to read and how to shape it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mask_rcnn_jax.ranges import (
    AboveZero,
    AddedLater,
    AtLeastZero,
    Incidental,
    Items,
    NotNegative,
    Positive,
    Range,
    Seed,
    Share,
    check,
)

Resize = Literal["detectron2", "torchvision"]
CANVAS_DIVISOR = 32  # whole cells of the coarsest features of most backbones
CanvasSide = Annotated[int, Range(32, 32_768, multiple_of=CANVAS_DIVISOR)]
Scale = Annotated[float, Range(0, 100, above_low=True)]


@dataclass(frozen=True)
class CocoConfig:
    """A directory in COCO's layout.

    Annotations are `root/annotations/annotation_file`; images lie in `root/{split}/` or `root/images/{split}/`.
    Splits are free names, such as "train2017". COCO's own keypoints are in "person_keypoints_{split}.json".
    """

    root: Annotated[str, Incidental()] = "data/coco"
    train_split: str = "train"
    val_split: str = "val"
    annotation_file: str = "instances_{split}.json"
    boxes_only: bool = False  # reads no segmentations: each mask is its box, for models without masks


@dataclass(frozen=True)
class LvisConfig:
    """LVIS v1 in a directory beside COCO 2017's images: `root/train2017/`, `root/val2017/`.

    Annotations are `root/annotations/annotation_file` or `root/annotation_file`. Each image lies where its "coco_url"
    says: LVIS's val split is partly in train2017. As published, models of LVIS train with `repeat_threshold` 0.001 and
    give up to 300 detections of a score above 1e-4.
    """

    root: Annotated[str, Incidental()] = "data/coco"
    train_split: str = "train"
    val_split: str = "val"
    annotation_file: str = "lvis_v1_{split}.json"
    boxes_only: bool = False


@dataclass(frozen=True)
class TfdsConfig:
    """ArrayRecord shards that `mask-rcnn build-tfds` wrote to `data_dir`, under `name`."""

    data_dir: Annotated[str, Incidental()] = "data/tfds"
    name: str = "coco"
    train_split: str = "train"
    val_split: str = "val"
    boxes_only: bool = False


@dataclass(frozen=True)
class ShapesConfig:
    """Synthetic shapes, which `mask-rcnn train` writes to `root` in COCO's layout when they are not there yet.

    The same settings always give the same files, byte for byte.
    """

    root: Annotated[str, Incidental()] = "data/shapes"
    num_train: NotNegative = 1500
    num_val: NotNegative = 100
    image_size: Annotated[int, Range(1, 16_384)] = 128  # pixels, square
    min_shape_size: Positive = 32  # pixels; diameter of a shape's circumscribed circle
    max_shape_size: Positive = 80
    max_shapes: Positive = 5  # per image; at least one
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.min_shape_size > self.max_shape_size:
            raise ValueError(
                f"min_shape_size {self.min_shape_size} must not be above max_shape_size {self.max_shape_size}"
            )
        if 0.8 * self.max_shape_size > self.image_size:  # a shape's centre is at least .8 of its radius from the edge
            raise ValueError(
                f"max_shape_size {self.max_shape_size} must be at most 1.25 x image_size {self.image_size}"
            )

    @property
    def train_split(self) -> str:
        return "train"

    @property
    def val_split(self) -> str:
        return "val"


@dataclass(frozen=True)
class LargeScaleJitterConfig:
    """Large-scale jitter: images are scaled at random, cut out at random, and filled up with grey to the whole canvas.

    At scale 1 the image just fits the canvas. For LSJ as published the canvas is (1024, 1024); see arXiv 2012.07177.
    """

    min_scale: Scale = 0.1
    max_scale: Scale = 2.0
    fill: Annotated[int, Range(0, 255)] = 128  # value of the pixels that the image leaves free, before normalisation

    def __post_init__(self) -> None:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} must not be above max_scale {self.max_scale}")


@dataclass(frozen=True)
class ColorJitterConfig:
    """Random factors, each drawn from [1 - x, 1 + x]."""

    brightness: AtLeastZero = 0.4
    contrast: AtLeastZero = 0.4
    saturation: AtLeastZero = 0.4


@dataclass(frozen=True)
class MixtureConfig:
    """Several sources to train on together, each drawn in proportion to its weight; the first one validates.

    All must have the same class names, in any order and with any ids: an image of a source that lacks a class would
    teach that the class is background. Classes and ids are the first source's.
    """

    sources: tuple[CocoConfig | ShapesConfig | LvisConfig | TfdsConfig, ...] = ()
    weights: tuple[AboveZero, ...] = ()  # positive, one a source; none: every image is drawn as often as any other

    def __post_init__(self) -> None:
        check(self)
        if self.weights and len(self.weights) != len(self.sources):
            raise ValueError(f"weights must be one for each of {len(self.sources)} sources, not {self.weights}")

    @property
    def train_split(self) -> str:
        return "train"

    @property
    def val_split(self) -> str:
        return "val"


Source = CocoConfig | ShapesConfig | LvisConfig | TfdsConfig | MixtureConfig


@dataclass(frozen=True)
class DataConfig:
    """Source, augmentation and fixed shapes of the batches."""

    source: Source = field(default_factory=ShapesConfig)
    # Pixels; one is drawn per training image.
    short_side: Annotated[tuple[Positive, ...], Items(1)] = (640, 672, 704, 736, 768, 800)
    short_side_eval: Positive = 800
    max_side: Positive = 1333  # the long side never exceeds this
    # (height, width) of landscape batches; portrait ones are transposed.
    canvas: tuple[CanvasSide, CanvasSide] = (832, 1344)
    canvas_eval: tuple[CanvasSide, CanvasSide] | None = None  # the same for evaluation; None: `canvas`
    resize: Resize = "detectron2"
    flip: Share = 0.5  # probability of a left-right flip
    vertical_flip: Share = 0.0
    rotate90: Share = 0.0  # probability of a random quarter-turn; of a half-turn when the canvas is not square
    # Largest (height, width) of a random crop, transposed for portrait images.
    crop: tuple[Positive, Positive] | None = None
    max_instances: Annotated[int, Range(1, 100_000)] = 100  # ground-truth slots; of more a random subset is kept
    mask_crop: Annotated[int, Range(1, 1024)] = 56  # side of the grid that holds each ground-truth mask
    # Pairs of keypoints that change places in a flip; none: those whose names say left and right.
    keypoint_flips: Annotated[tuple[tuple[str, str], ...] | None, AddedLater()] = None
    keep_empty: bool = False  # train on images without instances
    min_keypoints: NotNegative = 0  # train on images with as many annotated keypoints; Detectron2's keypoint models: 1
    repeat_threshold: Share = 0.0  # images of classes in fewer than this share of images are repeated; LVIS: 0.001
    # Processes that load training batches; 0 loads in threads.
    num_workers: Annotated[int, Range(0, 1024), Incidental()] = 2
    large_scale_jitter: LargeScaleJitterConfig | None = None  # in training, instead of `short_side` and `crop`
    color_jitter: ColorJitterConfig | None = None
    copy_paste: Share = 0.0  # probability that some instances of another image are pasted on an image
    broken_images: Literal["fail", "skip"] = "fail"  # "skip" leaves out and counts what cannot be read
    # Images whose header asks for more are refused before they are decoded.
    max_pixels: Annotated[int, Range(1, 10**12), Incidental()] = 400_000_000

    def __post_init__(self) -> None:
        if self.large_scale_jitter is not None and self.crop is not None:
            raise ValueError("large_scale_jitter cuts images itself; leave crop at none")
        for name, canvas in (("canvas", self.canvas), ("canvas_eval", self.canvas_eval)):
            if canvas is not None and canvas[0] > canvas[1]:
                raise ValueError(f"{name} {canvas} is portrait; give (height, width) of the landscape canvas")
