"""Synthetic textured shapes in COCO's layout: the data that needs no download.

A shape's class is told by its outline alone; colours, textures, sizes and rotations are random. Later shapes hide
parts of earlier ones, and annotations hold the visible part. `S` is the side of an image.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from mask_rcnn_jax.data.records import CocoDataset
from mask_rcnn_jax.data.sources.base import SourceConfig
from mask_rcnn_jax.data.sources.coco import CocoConfig
from mask_rcnn_jax.disk.files import is_file, is_folder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.ranges import AddedLater, Incidental, NotNegative, Positive, Range, Seed, may_be_missing
from mask_rcnn_jax.rle import as_text, encode_bitmap

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross")
TEXTURES = ("stripes", "checks", "clouds")
KEYPOINTS = ("left", "top", "right", "bottom")

_PANOPTIC = "panoptic_{split}.json"
_FORMAT = 1  # raise when the same settings give other files, so that existing directories are written again
_SETTINGS_FILE = "shapes.json"
_FIRST_STUFF = len(CLASS_NAMES) + 1  # id of the first of `TEXTURES` in panoptic files
_SMOOTHING = 4  # subpixels per pixel and axis
_VISIBLE_SHARE = 0.6  # a shape that shows less of itself is taken out of the image
_CONTRAST = 60.0  # least Euclidean distance between a shape's colour and the background's, of 255 a channel


@dataclass(frozen=True)
class ShapesConfig(SourceConfig):
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
    thin: Annotated[bool, AddedLater()] = False  # rings, crosses and stars of lines, a tenth of their size
    stuff: Annotated[bool, AddedLater()] = False  # what backgrounds show, as kinds of stuff in COCO's panoptic format
    keypoints: Annotated[bool, AddedLater()] = False  # the outermost visible pixel on each side, as keypoints

    def __post_init__(self) -> None:
        if self.min_shape_size > self.max_shape_size:
            raise ValueError(
                f"min_shape_size {self.min_shape_size} must not be above max_shape_size {self.max_shape_size}"
            )
        if 0.8 * self.max_shape_size > self.image_size:  # a shape's centre is at least .8 of its radius from the edge
            raise ValueError(
                f"max_shape_size {self.max_shape_size} must be at most 1.25 x image_size {self.image_size}"
            )

    def load(self, split: str) -> CocoDataset:
        self.check_prepared()
        return CocoConfig(self.root, panoptic_file=_PANOPTIC if self.stuff else None).load(split)

    def prepare(self) -> None:
        prepare_shapes(self)

    def check_prepared(self) -> None:
        check_shapes(self)


def prepare_shapes(config: ShapesConfig) -> None:
    """Write the directory `config.root` unless it holds these very shapes.

    Nothing that is there is replaced: raises UserError where the directory holds anything else, or cannot be written.
    """
    if _holds_shapes(config):
        return
    root = Path(config.root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{root.name[:40]}-", dir=root.parent))
        try:
            write_shapes(config, beside / "shapes")
            os.rename(beside / "shapes", root)  # an empty directory gives way, no other does
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        # Another process may have written them meanwhile.
        if not _holds_shapes(config):
            reason = error.strerror or error
            raise UserError(
                f"Directory {root} cannot be written ({reason}); set data.source.root to another."
            ) from None


def check_shapes(config: ShapesConfig) -> None:
    """Raise UserError where the directory `config.root` does not hold these very shapes."""
    if not _holds_shapes(config):
        raise UserError(
            f"Directory {config.root} holds no synthetic shapes, which only mask-rcnn train --config FILE.py writes;"
            " run that first, or set data.source.root to where they are."
        )


def _holds_shapes(config: ShapesConfig) -> bool:
    """Tell whether the directory holds the shapes, or nothing; raise UserError where it holds anything else."""
    root = Path(config.root)
    if not os.path.lexists(root) or (is_folder(root) and not os.listdir(root)):
        return False
    if not is_file(root / _SETTINGS_FILE):
        raise UserError(f"Directory {root} holds no synthetic shapes; set data.source.root to another directory.")
    if (root / _SETTINGS_FILE).read_bytes() != _settings(config).encode():
        raise UserError(
            f"Directory {root} holds synthetic shapes of other settings; set data.source.root to another directory, or"
            " remove this one."
        )
    return True


def write_shapes(config: ShapesConfig, directory: str | Path) -> None:
    """Writes the train and val splits into `directory`; the same bytes for the same settings."""
    directory = Path(directory)
    (directory / "annotations").mkdir(parents=True)
    for part, (split, count) in enumerate([(config.train_split, config.num_train), (config.val_split, config.num_val)]):
        drawings = (draw_shapes(config, np.random.default_rng([config.seed, part, index])) for index in range(count))
        _write_split(config, directory, split, drawings)
    (directory / _SETTINGS_FILE).write_text(_settings(config))


class Drawing(NamedTuple):
    """An image, COCO's annotations of its shapes (without ids), and what else can be seen in it."""

    image: UInt8[np.ndarray, "S S 3"]
    annotations: list[dict[str, Any]]
    owner: Int[np.ndarray, "S S"]  # the number of the shape that a pixel shows, from 1; 0 for the background
    backdrop: int  # of `TEXTURES`; -1 if the background was given


def _write_split(config: ShapesConfig, directory: Path, split: str, drawings: Iterable[Drawing]) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    segments = directory / "annotations" / _PANOPTIC.replace("{split}.json", split)
    (directory / split).mkdir()
    if config.stuff:
        segments.mkdir()
    for index, drawing in enumerate(drawings):
        image_id, name = index + 1, f"{index:06d}.png"
        images.append({"id": image_id, "file_name": name, "height": config.image_size, "width": config.image_size})
        Image.fromarray(drawing.image).save(directory / split / name)
        for instance in drawing.annotations:
            ids = {"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0}
            annotations.append(ids | instance)
        if config.stuff:
            panoptic.append({"image_id": image_id, "file_name": name, "segments_info": _infos(drawing)})
            numbers = np.zeros_like(drawing.image)
            numbers[..., 0] = drawing.owner + 1  # 0 would be a pixel of no segment
            Image.fromarray(numbers).save(segments / name)
    categories: list[dict[str, Any]] = [{"id": index + 1, "name": name} for index, name in enumerate(CLASS_NAMES)]
    of_shapes = [each | {"keypoints": list(KEYPOINTS)} for each in categories] if config.keypoints else categories
    _write_json(directory, f"instances_{split}.json", images, annotations, of_shapes)
    if config.stuff:
        kinds = [{"id": _FIRST_STUFF + kind, "name": name, "isthing": 0} for kind, name in enumerate(TEXTURES)]
        both = [each | {"isthing": 1} for each in categories] + kinds
        _write_json(directory, segments.name + ".json", images, panoptic, both)


def _infos(drawing: Drawing) -> list[dict[str, Any]]:
    """The segments of a drawing by number: the background first, then each shape."""
    categories = [_FIRST_STUFF + drawing.backdrop, *(each["category_id"] for each in drawing.annotations)]
    return [{"id": number, "category_id": category, "iscrowd": 0} for number, category in enumerate(categories, 1)]


def _write_json(directory: Path, name: str, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
    content = {"images": images, "annotations": annotations, "categories": categories}
    (directory / "annotations" / name).write_text(json.dumps(content))


def draw_shapes(
    config: ShapesConfig, rng: np.random.Generator, backdrop: Float[np.ndarray, "S S 3"] | None = None
) -> Drawing:
    """Draw an image of shapes that lie on `backdrop`, or on a texture of their own."""
    side, kind = config.image_size, -1
    colour = rng.uniform(20, 235, 3) if backdrop is None else backdrop.mean(axis=(0, 1))
    if backdrop is None:
        image, kind = texture(rng, side, colour)
    else:
        image = backdrop.astype(np.float32)
    count = int(rng.integers(1, config.max_shapes + 1))
    shapes = [_Shape(config, rng, colour) for _ in range(count)]
    # Dropping a hidden shape uncovers others, so who is visible enough is settled from the front to the back.
    taken = np.zeros((side, side), bool)
    visible: list[tuple[_Shape, np.ndarray]] = []
    for shape in reversed(shapes):
        mask = shape.mask & ~taken
        if mask.sum() >= _VISIBLE_SHARE * shape.mask.sum() and mask.sum() >= 16:
            visible.append((shape, mask))
            taken |= shape.mask
    visible.reverse()
    owner = np.zeros((side, side), int)
    for number, (shape, mask) in enumerate(visible, 1):
        image += shape.alpha[..., None] * (shape.texture - image)
        owner[mask] = number
    image += rng.normal(0, rng.uniform(2, 8), image.shape)
    annotations = [shape.annotation(mask) for shape, mask in visible]
    if config.keypoints:
        annotations = [each | _keypoints(mask) for each, (_, mask) in zip(annotations, visible, strict=True)]
    return Drawing(np.clip(image + 0.5, 0, 255).astype(np.uint8), annotations, owner, kind)


class _Shape:
    """One shape as drawn: `alpha` [S, S] its antialiased coverage, `mask` the pixels it covers by half."""

    def __init__(self, config: ShapesConfig, rng: np.random.Generator, background: np.ndarray):
        side = config.image_size
        self.category = int(rng.integers(len(CLASS_NAMES)))
        radius = rng.uniform(config.min_shape_size, config.max_shape_size) / 2
        centre = rng.uniform(0.8 * radius, side - 0.8 * radius, 2)
        outline, self.hole = _outline(CLASS_NAMES[self.category], rng, config.thin)
        self.polygon = centre + radius * outline
        self.alpha = _fill(self.polygon, side)
        if self.hole:
            self.alpha = self.alpha - _fill(centre + self.hole * radius * outline, side)
        self.mask = self.alpha >= 0.5
        colour = rng.uniform(0, 255, 3)
        while np.linalg.norm(colour - background) < _CONTRAST:
            colour = rng.uniform(0, 255, 3)
        self.texture = texture(rng, side, colour).pixels

    def annotation(self, visible: np.ndarray) -> dict[str, Any]:
        """COCO's entry for the pixels `visible`: a polygon where nothing hides the shape, else an RLE."""
        side = len(visible)
        whole = not self.hole and bool((visible == self.mask).all())
        if whole and self.polygon.min() >= 0 and self.polygon.max() <= side:
            segmentation: Any = [[round(value, 2) for value in self.polygon.ravel().tolist()]]
        else:
            segmentation = as_text(encode_bitmap(visible))
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        return {
            "category_id": self.category + 1,
            "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
            "area": int(visible.sum()),
            "segmentation": segmentation,
        }


def _keypoints(visible: Bool[np.ndarray, "S S"]) -> dict[str, Any]:
    """COCO's entries for `KEYPOINTS`, the middle one of the pixels that lie farthest on each side."""
    rows, columns = np.nonzero(visible)
    flat: list[int] = []
    for values, farthest in ((columns, min), (rows, min), (columns, max), (rows, max)):
        there = np.flatnonzero(values == farthest(values))
        middle = there[len(there) // 2]
        flat += [int(columns[middle]), int(rows[middle]), 2]
    return {"keypoints": flat, "num_keypoints": len(KEYPOINTS)}


def _outline(name: str, rng: np.random.Generator, thin: bool) -> tuple[np.ndarray, float]:
    """Corners [P, 2] within the unit circle, turned at random, and the relative size of a hole (0 for none)."""
    turn, hole = rng.uniform(0, 2 * np.pi), 0.0
    if name in ("circle", "ring"):
        angles, radii = np.arange(40) / 40, np.ones(40)
        hole = (0.8 if thin else 0.5) if name == "ring" else 0.0
    elif name == "square":
        angles, radii = np.arange(4) / 4, np.ones(4)
    elif name == "triangle":
        angles, radii = np.arange(3) / 3, np.ones(3)
    elif name == "star":
        angles, radii = np.arange(10) / 10, np.tile([1.0, 0.2 if thin else 0.45], 5)
    else:
        # A plus whose arms are so much longer than wide: eight corners on the unit circle, four where the arms meet.
        longer = 10 if thin else 3
        arm = np.arctan(1 / longer) / (2 * np.pi)
        inner = np.sqrt(2) / np.sqrt(longer**2 + 1)
        angles = np.concatenate([quarter / 4 + np.array([-arm, arm, 1 / 8]) for quarter in range(4)])
        radii = np.tile([1.0, 1.0, inner], 4)
    angles = 2 * np.pi * angles + turn
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1), hole


def _fill(polygon: np.ndarray, side: int) -> np.ndarray:
    """[side, side] share of each pixel inside the polygon."""
    fine = Image.new("L", (side * _SMOOTHING, side * _SMOOTHING))
    # Pillow takes coordinates at pixel centres.
    ImageDraw.Draw(fine).polygon([(x * _SMOOTHING - 0.5, y * _SMOOTHING - 0.5) for x, y in polygon], fill=255)
    return np.asarray(fine.reduce(_SMOOTHING), np.float32) / 255


class Texture(NamedTuple):
    """A pattern, and which of `TEXTURES` it is."""

    pixels: Float[np.ndarray, "S S 3"]
    kind: int


def texture(rng: np.random.Generator, side: int, colour: np.ndarray) -> Texture:
    """Draw a pattern around `colour`: stripes, checks, or smooth noise."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    angle, period, strength = rng.uniform(0, np.pi), rng.uniform(5, 16), rng.uniform(5, 35)
    along = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    across = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
    coarse = rng.uniform(-1, 1, (int(rng.integers(3, 12)),) * 2).astype(np.float32)
    kind = int(rng.integers(len(TEXTURES)))
    if kind == 0:
        pattern = np.sin(along)
    elif kind == 1:
        pattern = np.sign(np.sin(along) * np.sin(across))
    else:
        pattern = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    return Texture((colour + strength * pattern[..., None]).astype(np.float32), kind)


def _settings(config: ShapesConfig) -> str:
    """Everything that decides the files' content, as text."""
    added = may_be_missing(type(config))
    content = {key: value for key, value in asdict(config).items() if key != "root"}
    content = {key: value for key, value in content.items() if key not in added or value != added[key]}
    return json.dumps(content | {"format": _FORMAT})
