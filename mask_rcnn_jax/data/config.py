"""Settings of the `data` layer: what to read and how to shape it."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from mask_rcnn_jax.data.sources.base import SourceConfig
from mask_rcnn_jax.data.sources.shapes import ShapesConfig
from mask_rcnn_jax.media.image_files import MAX_PIXELS
from mask_rcnn_jax.ranges import (
    AddedLater,
    AtLeastZero,
    Incidental,
    Items,
    NotNegative,
    Positive,
    Range,
    Share,
)

Resize = Literal["detectron2", "torchvision"]
CANVAS_DIVISOR = 32  # whole cells of the coarsest features of most backbones
CanvasSide = Annotated[int, Range(32, 32_768, multiple_of=CANVAS_DIVISOR)]
Canvas = tuple[CanvasSide, CanvasSide]  # (height, width)
Scale = Annotated[float, Range(0, 100, above_low=True)]


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
class ProposalFilesConfig:
    """Files of boxes that come with the images, for models that are given their proposals.

    In a name, {split} stands for that of the split. `docs/proposals.md` has the formats.
    """

    train: Annotated[str, Incidental()] = "data/proposals/{split}.npz"  # of the source's train split
    val: Annotated[str, Incidental()] = "data/proposals/{split}.npz"  # of every other one
    slots: Annotated[int, Range(1, 100_000)] = 2000  # proposals of an image, those with the highest scores


@dataclass(frozen=True)
class DataConfig:
    """Source, augmentation and fixed shapes of the batches."""

    source: SourceConfig = field(default_factory=ShapesConfig)
    # Pixels; one is drawn per training image.
    short_side: Annotated[tuple[Positive, ...], Items(1)] = (640, 672, 704, 736, 768, 800)
    short_side_eval: Positive = 800
    max_side: Positive = 1333  # the long side never exceeds this
    # (height, width) of landscape batches; portrait ones are transposed.
    canvas: Canvas = (832, 1344)
    canvas_eval: Canvas | None = None  # the same for evaluation; None: `canvas`
    # Of `canvas` and those of these that fit inside it, an image takes the smallest that holds it; `mask-rcnn canvases`
    # chooses them. With large-scale jitter images fill `canvas`.
    smaller_canvases: Annotated[tuple[Canvas, ...], AddedLater()] = ()
    smaller_canvases_eval: Annotated[tuple[Canvas, ...], AddedLater()] = ()
    resize: Resize = "detectron2"
    flip: Share = 0.5  # probability of a left-right flip
    vertical_flip: Share = 0.0
    rotate90: Share = 0.0  # probability of a random quarter-turn; of a half-turn when the image's canvas is not square
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
    max_pixels: Annotated[int, Range(1, 10**12), Incidental()] = MAX_PIXELS
    proposals: Annotated[ProposalFilesConfig | None, AddedLater()] = None

    def __post_init__(self) -> None:
        if self.large_scale_jitter is not None and self.crop is not None:
            raise ValueError("large_scale_jitter cuts images itself; leave crop at none")
        if self.proposals is not None and self.copy_paste > 0:
            raise ValueError("copy_paste pastes instances for which nothing was proposed; set it to 0 with proposals")
        for name, canvas in self.all_canvases:
            if canvas[0] > canvas[1]:
                raise ValueError(f"{name} {canvas} is portrait; give (height, width) of the landscape canvas")

    @property
    def all_canvases(self) -> list[tuple[str, Canvas]]:
        """Every canvas with the name of its setting."""
        named = [("canvas", self.canvas), *(("smaller_canvases", canvas) for canvas in self.smaller_canvases)]
        named += [] if self.canvas_eval is None else [("canvas_eval", self.canvas_eval)]
        return named + [("smaller_canvases_eval", canvas) for canvas in self.smaller_canvases_eval]

    def in_evaluation(self) -> "DataConfig":
        """Return the settings by which images are resized and padded in evaluation, under the names of training's."""
        return replace(
            self,
            short_side=(self.short_side_eval,),
            canvas=self.canvas_eval or self.canvas,
            smaller_canvases=self.smaller_canvases_eval,
            crop=None,
            rotate90=0.0,
            large_scale_jitter=None,
        )
