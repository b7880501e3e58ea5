"""Images, boxes and keypoints under resizing, cropping, flips and quarter-turns.

`H W` are an image's height and width in pixels. Boxes are (x1, y1, x2, y2) in continuous coordinates, where the image
covers [0, W] x [0, H]. Keypoints are (x, y, visibility), all zeros where the visibility is 0; `n` instances have `J`.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from jaxtyping import Float, Int, Num, UInt8
from PIL import Image

from mask_rcnn_jax.data.config import DataConfig, Resize
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.media.image_files import (
    UNREADABLE,
    decode_upright,
    opened_image,
    pillow_errors,
    with_retries,
)

_PILLOW = tuple(map(int, PIL.__version__.split(".")[:2]))
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def open_image(
    path: str | Path, max_pixels: int = DataConfig.max_pixels, opener: Callable[[], io.BufferedIOBase] | None = None
) -> Image.Image:
    """The decoded image in RGB, turned as the EXIF orientation says; grey, palette, 16-bit and transparent ones are
    converted: 16-bit values are divided by 257 and transparency is dropped.

    It is read from what `opener` opens, where that is not the file `path`. Raises `UserError` naming `path` for a
    missing, truncated or unreadable file, and before decoding for one of more than `max_pixels`. Where the disk fails,
    it is read again a few times.
    """

    def read() -> Image.Image:
        with opened_image(opener() if opener else path) as picture:
            decode_upright(path, picture, max_pixels)
            return as_rgb(picture)

    try:
        return with_retries(read)
    except FileNotFoundError:
        raise UserError(f"Image {path} does not exist; restore it or remove it from the annotation file.") from None
    except UNREADABLE as error:
        raise UserError(f"Image {path} cannot be read ({error}); restore or replace the file.") from error


def as_rgb(picture: Image.Image) -> Image.Image:
    """The decoded picture in RGB, converted as `open_image` says, but not turned."""
    if picture.mode in _SIXTEEN_BIT or picture.mode == "F":
        values = np.asarray(picture)
        values = values if picture.mode == "F" else values.astype(np.int64) // 257
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")
    with pillow_errors():
        picture.load()
        return picture if picture.mode == "RGB" else picture.convert("RGB")


def read_image(path: str | Path, max_pixels: int = DataConfig.max_pixels) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of `open_image`."""
    return np.asarray(open_image(path, max_pixels))


def resized_size(
    height: int, width: int, short_side: int, max_side: int, convention: Resize = "detectron2"
) -> tuple[int, int]:
    """(height, width) after the short side becomes `short_side`, or less where the long side would pass `max_side`.

    Detectron2 rounds sides to the nearest integer, torchvision down.
    """
    if convention == "torchvision":
        scale = min(short_side / min(height, width), max_side / max(height, width))
        return max(int(height * scale), 1), max(int(width * scale), 1)
    scale = short_side / min(height, width)
    # The order of the products is Detectron2's: it decides how ties round.
    sides = (float(short_side), scale * width) if height < width else (scale * height, float(short_side))
    if max(sides) > max_side:
        shrink = max_side / max(sides)
        sides = (sides[0] * shrink, sides[1] * shrink)
    return max(int(sides[0] + 0.5), 1), max(int(sides[1] + 0.5), 1)


def resize(
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], convention: Resize = "detectron2"
) -> Num[np.ndarray, "h w 3"]:
    """The image at `size` (height, width), bilinear.

    Detectron2: Pillow, antialiased, uint8. torchvision: no antialiasing, float32 without rounding (half-pixel centres).
    """
    if convention == "detectron2" and image.shape[:2] == size:
        return image
    return resize_picture(Image.fromarray(image), size, convention)


def resize_picture(picture: Image.Image, size: tuple[int, int], convention: Resize) -> Num[np.ndarray, "h w 3"]:
    """`resize` of an RGB image that Pillow holds, which saves copies."""
    height, width = size
    if convention == "detectron2":
        same = picture.size == (width, height)
        return np.asarray(picture if same else picture.resize((width, height), Image.Resampling.BILINEAR))
    rows = _interpolate(np.asarray(picture, np.float32), height)
    return np.ascontiguousarray(_interpolate(rows.swapaxes(0, 1), width).swapaxes(0, 1))


def resize_window(
    picture: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int], convention: Resize
) -> Num[np.ndarray, "h w 3"]:
    """Compute the part of `resize_picture` inside `window` (x1, y1, x2, y2), without the rest.

    Detectron2: but for a grey level here and there, since Pillow takes the place of the window in float32.
    """
    x1, y1, x2, y2 = window
    if convention == "torchvision" or window == (0, 0, size[1], size[0]):
        return resize_picture(picture, size, convention)[y1:y2, x1:x2]
    scale_x, scale_y = picture.width / size[1], picture.height / size[0]
    high_x, high_y = min(x2 * scale_x, picture.width), min(y2 * scale_y, picture.height)
    first = columns_come_first(picture.height, picture.width, *size)
    if first == columns_come_first(picture.height, picture.width, y2 - y1, x2 - x1):
        source = (x1 * scale_x, y1 * scale_y, high_x, high_y)
        return np.asarray(picture.resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR, source))
    for along_columns in (first, not first):  # one axis at a time, in the order of the whole
        width, height = picture.size
        if along_columns:
            to, source = (width, y2 - y1), (0, y1 * scale_y, width, high_y)
        else:
            to, source = (x2 - x1, height), (x1 * scale_x, 0, high_x, height)
        picture = picture.resize(to, Image.Resampling.BILINEAR, source)
    return np.asarray(picture)


def columns_come_first(height: Any, width: Any, new_height: Any, new_width: Any) -> Any:
    """Tell whether Pillow resizes an image's columns before its rows, and rounds in between; integers or arrays.

    13 does where far more rows than columns go, 12.2 where the image is very tall, and those before it never.
    """
    if _PILLOW >= (13, 0):
        gone = height - new_height
        return (gone > 0) & (gone > 2 * (width - new_width))
    return _PILLOW >= (12, 2) and (height > 100 * width) & (new_height < height)


def _interpolate(image: np.ndarray, length: int) -> np.ndarray:
    """Resamples the first axis to `length` by linear interpolation between pixel centres."""
    # torch's positions: float32, rounded once. Exact ones are up to 5e-5 pixels away, which a deep network amplifies.
    scale = float(np.float32(image.shape[0]) / np.float32(length))
    position = np.maximum((np.arange(length) + 0.5) * scale - 0.5, 0.0).astype(np.float32)
    low = np.minimum(position.astype(np.int64), image.shape[0] - 1)
    high = np.minimum(low + 1, image.shape[0] - 1)
    weight = (position - low.astype(np.float32))[:, None, None]
    return image[low] * (1 - weight) + image[high] * weight


def mirror(image: Num[np.ndarray, "H W 3"]) -> Num[np.ndarray, "H W 3"]:
    """The image mirrored left to right."""
    result = np.empty_like(image)
    for channel in range(3):  # one at a time: NumPy would copy each reversed pixel by itself
        result[..., channel] = image[:, ::-1, channel]
    return result


def clip_boxes(boxes: Float[np.ndarray, "n 4"], window: tuple[int, int, int, int]) -> Float[np.ndarray, "n 4"]:
    """The part of each box inside `window` (x1, y1, x2, y2); without area where they do not meet."""
    low, high = np.array(window[:2] * 2, boxes.dtype), np.array(window[2:] * 2, boxes.dtype)
    return np.clip(boxes, low, high)


def flip_boxes(boxes: Float[np.ndarray, "n 4"], width: int) -> Float[np.ndarray, "n 4"]:
    """Boxes of the image mirrored left to right."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1).astype(boxes.dtype)


def vertical_flip_boxes(boxes: Float[np.ndarray, "n 4"], height: int) -> Float[np.ndarray, "n 4"]:
    """Boxes of the image mirrored top to bottom."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([x1, height - y2, x2, height - y1], axis=1).astype(boxes.dtype)


def rotate_boxes(boxes: Float[np.ndarray, "n 4"], height: int, width: int, turns: int) -> Float[np.ndarray, "n 4"]:
    """Boxes of the image turned counter-clockwise by `turns` quarter-turns, as `numpy.rot90` turns it."""
    for _ in range(turns % 4):
        x1, y1, x2, y2 = boxes.T
        boxes = np.stack([y1, width - x2, y2, width - x1], axis=1).astype(boxes.dtype)
        height, width = width, height
    return boxes


def crop_keypoints(
    keypoints: Float[np.ndarray, "n J 3"], window: tuple[int, int, int, int]
) -> Float[np.ndarray, "n J 3"]:
    """Keypoints seen from the corner of `window` (x1, y1, x2, y2); those outside it become zeros."""
    x, y, visibility = np.moveaxis(keypoints, -1, 0)
    x1, y1, x2, y2 = window
    inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
    return _keypoints(x - x1, y - y1, np.where(inside, visibility, 0))


def flip_keypoints(
    keypoints: Float[np.ndarray, "n J 3"], width: int, mirrored: Int[np.ndarray, " J"]
) -> Float[np.ndarray, "n J 3"]:
    """Keypoints of the image mirrored left to right, where each is taken for the one at its place in `mirrored`."""
    x, y, visibility = np.moveaxis(keypoints[:, mirrored], -1, 0)
    return _keypoints(width - x, y, visibility)


def vertical_flip_keypoints(
    keypoints: Float[np.ndarray, "n J 3"], height: int, mirrored: Int[np.ndarray, " J"]
) -> Float[np.ndarray, "n J 3"]:
    """Keypoints of the image mirrored top to bottom, which turns a left hand into a right one as well."""
    x, y, visibility = np.moveaxis(keypoints[:, mirrored], -1, 0)
    return _keypoints(x, height - y, visibility)


def rotate_keypoints(
    keypoints: Float[np.ndarray, "n J 3"], height: int, width: int, turns: int
) -> Float[np.ndarray, "n J 3"]:
    """Keypoints of the image turned counter-clockwise by `turns` quarter-turns, as `numpy.rot90` turns it."""
    for _ in range(turns % 4):
        x, y, visibility = np.moveaxis(keypoints, -1, 0)
        keypoints = _keypoints(y, width - x, visibility)
        height, width = width, height
    return keypoints


def _keypoints(x: np.ndarray, y: np.ndarray, visibility: np.ndarray) -> Float[np.ndarray, "n J 3"]:
    return np.where(visibility[..., None] > 0, np.stack([x, y, visibility], axis=-1), 0).astype(np.float32)
