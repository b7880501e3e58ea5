"""Images larger than a model sees at once, through overlapping tiles.

An instance that fits the overlap lies whole in some tile; `stitching` says what becomes of the others.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from jaxtyping import Int
from PIL import Image

from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.images import ImageLike, open_picture, path_of
from mask_rcnn_jax.inference.predictor import OnError, Streaming
from mask_rcnn_jax.inference.results.detections import Detections
from mask_rcnn_jax.inference.stitching import stitch
from mask_rcnn_jax.ranges import Positive, Range, check


@dataclass(frozen=True)
class TilingConfig:
    """Settings of the tiles. An overlap above the size of most instances is best: they are then never cut."""

    tile: Annotated[int, Range(16)] = 1024  # side, pixels of the image
    overlap: Positive | None = None  # least overlap of neighbours, pixels; None: a quarter of a tile

    def __post_init__(self) -> None:
        check(self)
        if self.pixels_shared >= self.tile:
            raise UserError(
                f"tiles of {self.tile} pixels cannot overlap by {self.overlap}; give from 1 to {self.tile - 1}"
            )

    @property
    def pixels_shared(self) -> int:
        return self.tile // 4 if self.overlap is None else self.overlap


def tile_windows(height: int, width: int, config: TilingConfig) -> Int[np.ndarray, "t 4"]:
    """Tiles (x1, y1, x2, y2) of an image, whole pixels, row by row.

    All have the side `config.tile`, or the image's where that is smaller, and are spread evenly.
    """
    rows, columns = (_starts(length, config) for length in (height, width))
    y, x = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
    return np.stack([x, y, np.minimum(x + config.tile, width), np.minimum(y + config.tile, height)], axis=1)


def _starts(length: int, config: TilingConfig) -> Int[np.ndarray, " s"]:
    spare = max(length - config.tile, 0)
    steps = -(-spare // (config.tile - config.pixels_shared))
    return np.arange(steps + 1) * spare // max(steps, 1)


class TiledPredictor:
    """A predictor for large images around one for images of a tile's size.

    Beside what `predictor` takes for a batch of tiles, memory holds one decoded image (4 bytes a pixel), and the boxes
    and run-length encoded masks of its tiles. A model's limit of detections an image holds for each tile.
    """

    def __init__(
        self,
        predictor: Streaming,
        config: TilingConfig = TilingConfig(),
        score_threshold: float = 0.0,
        max_pixels: int = DataConfig.max_pixels,
    ):
        """Detections count above `score_threshold`. That of `predictor` should be the model's own, since scores are
        averaged over tiles. Images of more than `max_pixels` are refused.
        """
        Range(0, 1).check(score_threshold, "score_threshold")
        self.predictor, self.config = predictor, config
        self.score_threshold, self.max_pixels = score_threshold, max_pixels

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(batch size, height, width) of each program that was run so far."""
        return self.predictor.shapes

    def stream(self, images: Iterable[ImageLike], on_error: OnError | None = None) -> Iterator[Detections]:
        """Detections of each image, in order; see `Predictor.stream`."""
        for image in images:
            try:
                picture = open_picture(image, self.max_pixels)
            except UserError as error:
                if on_error is None:
                    raise
                on_error(image, error)
                continue
            found = self._detect(picture)
            yield replace(found.take(found.scores > self.score_threshold), path=path_of(image))

    def __call__(self, image: ImageLike) -> Detections:
        """Detections of one image, in its pixels, best score first; those of an image within a tile as they are."""
        return next(self.stream([image]))

    def _detect(self, picture: Image.Image) -> Detections:
        size = (picture.height, picture.width)
        windows = tile_windows(*size, self.config)
        tiles = (picture.crop((x1, y1, x2, y2)) for x1, y1, x2, y2 in windows.tolist())
        return stitch(windows, list(self.predictor.stream(tiles)), size)
