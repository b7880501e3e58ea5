"""What to read and how to shape it: the settings of the `data` layer."""

from dataclasses import dataclass, field
from typing import Literal

Resize = Literal["detectron2", "torchvision"]


@dataclass(frozen=True)
class CocoConfig:
    """A directory in COCO's layout.

    Annotations are `root/annotations/annotation_file`; images lie in `root/{split}/` or `root/images/{split}/`.
    Splits are free names, such as "train2017". COCO's own keypoints are in "person_keypoints_{split}.json".
    """

    root: str = "data/coco"
    train_split: str = "train"
    val_split: str = "val"
    annotation_file: str = "instances_{split}.json"


@dataclass(frozen=True)
class ShapesConfig:
    """Synthetic shapes, written to `root` in COCO's layout when they are not there yet.

    The same settings always give the same files, byte for byte.
    """

    root: str = "data/shapes"
    num_train: int = 1500
    num_val: int = 100
    image_size: int = 128  # pixels, square
    min_shape_size: int = 32  # pixels; diameter of a shape's circumscribed circle
    max_shape_size: int = 80
    max_shapes: int = 5  # per image; at least one
    seed: int = 0

    @property
    def train_split(self) -> str:
        return "train"

    @property
    def val_split(self) -> str:
        return "val"


@dataclass(frozen=True)
class DataConfig:
    """Source, augmentation and fixed shapes of the batches."""

    source: CocoConfig | ShapesConfig = field(default_factory=ShapesConfig)
    short_side: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # pixels; one is drawn per training image
    short_side_eval: int = 800
    max_side: int = 1333  # the long side never exceeds this
    canvas: tuple[int, int] = (832, 1344)  # (height, width) of landscape batches; portrait ones are transposed
    canvas_eval: tuple[int, int] | None = None  # the same for evaluation; None: `canvas`
    resize: Resize = "detectron2"
    flip: float = 0.5  # probability of a left-right flip
    vertical_flip: float = 0.0
    rotate90: float = 0.0  # probability of a random quarter-turn; of a half-turn when the canvas is not square
    crop: tuple[int, int] | None = None  # largest (height, width) of a random crop, transposed for portrait images
    max_instances: int = 100  # ground-truth slots; of more instances a random subset is kept
    mask_crop: int = 56  # side of the grid that holds each ground-truth mask
    keep_empty: bool = False  # train on images without instances
    min_keypoints: int = 0  # train on images with as many annotated keypoints; Detectron2's keypoint models: 1
    num_workers: int = 2  # processes that load training batches; 0 loads in threads
