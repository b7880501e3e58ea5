"""An image with its instances, as it is augmented and trained on.

`H W` are the sides of the sample's image, `n` its instances, `J` the keypoints of one, `C` the side of a mask grid.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8

from mask_rcnn_jax.data.augment import transforms
from mask_rcnn_jax.data.records import BoxProposals
from mask_rcnn_jax.data.records.masks import Segmentation, bitmap, coverage
from mask_rcnn_jax.rle import Window, encode_bitmap


@dataclass(frozen=True, eq=False)
class PlacedMask:
    """An instance's segmentation as its box shows it, cut only when asked for.

    So an augmentation costs nothing by instance, and what reaches the grid is the annotation and no resized bitmap.
    """

    segmentation: Segmentation
    region: Float[np.ndarray, "4"]  # (x1, y1, x2, y2): what the box covers, in the segmentation's pixels
    mirrored: bool = False  # the box shows it mirrored left to right,
    turns: int = 0  # then turned counter-clockwise by so many quarter-turns

    def grid(self, size: int) -> UInt8[np.ndarray, "{size} {size}"]:
        """Coverage (0..255) of `size` x `size` equal cells of the box."""
        return self._as_shown(coverage(self.segmentation, self.region, size))

    def pixels(self, box: Float[np.ndarray, "4"], window: Window) -> Bool[np.ndarray, "h w"]:
        """Rasterise the instance on the pixels of `window`; both are in pixels of the sample, where it has `box`."""
        corner, side = box[:2].astype(np.float64), (box[2:] - box[:2]).astype(np.float64)
        part = ((np.array(window).reshape(2, 2) - corner) / side).reshape(1, 4)  # of a box of side 1
        part = transforms.rotate_boxes(part, 1, 1, -self.turns)
        part = (transforms.flip_boxes(part, 1) if self.mirrored else part).reshape(2, 2)
        region = (self.region[:2] + part * (self.region[2:] - self.region[:2])).ravel()
        height, width = window[3] - window[1], window[2] - window[0]
        size = (width, height) if self.turns % 2 else (height, width)
        return self._as_shown(bitmap(self.segmentation, region, size))

    def flipped(self) -> "PlacedMask":
        """The mask mirrored left to right."""
        return replace(self, mirrored=not self.mirrored, turns=-self.turns % 4)

    def turned(self, turns: int) -> "PlacedMask":
        """The mask turned counter-clockwise by `turns` quarter-turns."""
        return replace(self, turns=(self.turns + turns) % 4)

    def _as_shown(self, array: np.ndarray) -> np.ndarray:
        return np.rot90(array[:, ::-1] if self.mirrored else array, self.turns)


def mask_of_pixels(pixels: Bool[np.ndarray, "h w"]) -> tuple[PlacedMask, Float[np.ndarray, "4"]]:
    """The mask of a bitmap that is not empty, and the box around it."""
    columns, rows = np.flatnonzero(pixels.any(axis=0)), np.flatnonzero(pixels.any(axis=1))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    return PlacedMask(encode_bitmap(pixels), box), box


@dataclass(frozen=True, eq=False)
class Sample:
    """An image and its instances, in pixels of that image."""

    image: Num[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "n 4"]
    classes: Int[np.ndarray, " n"]
    masks: tuple[PlacedMask, ...]
    keypoints: Float[np.ndarray, "n J 3"]  # (x, y, visibility), zeros where not annotated; J is 0 without keypoints
    dropped: int = 0  # instances left out because there are more than slots
    proposals: BoxProposals | None = None  # None for a dataset without
    semantic: UInt8[np.ndarray, "H W"] | None = None  # the kind at each pixel; None for a dataset without

    def select(self, rows: Int[np.ndarray, " m"]) -> "Sample":
        """The sample with these instances alone."""
        return replace(
            self,
            boxes=self.boxes[rows],
            classes=self.classes[rows],
            masks=tuple(self.masks[row] for row in rows),
            keypoints=self.keypoints[rows],
        )

    def grids(self, size: int) -> UInt8[np.ndarray, "n {size} {size}"]:
        """Coverage (0..255) of the cells of a grid over each box."""
        grids = np.zeros((len(self.masks), size, size), np.uint8)
        for row, mask in enumerate(self.masks):
            grids[row] = mask.grid(size)
        return grids
