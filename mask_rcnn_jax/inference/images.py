"""Load a path, array or Pillow image as RGB."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.data.augment.transforms import as_rgb, open_image
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.media.image_files import UNREADABLE, check_pixels, pillow_errors

ImageLike = str | Path | np.ndarray | Image.Image


def open_picture(image: ImageLike, max_pixels: int = DataConfig.max_pixels) -> Image.Image:
    """The decoded image in RGB, turned as its EXIF orientation says.

    `image` is a file, a picture of Pillow, or an array: uint8 or uint16, [H, W], [H, W, 1], [H, W, 3] in RGB or
    [H, W, 4] with transparency, which is dropped. Of an animated image it is the first frame. Raises `UserError` for
    what is no image, for a broken one, and for one of more than `max_pixels`.
    """
    try:
        if isinstance(image, str | Path):
            return open_image(image, max_pixels)
        if isinstance(image, Image.Image):
            return _converted(image, max_pixels)
        return _from_array(image)
    except MemoryError:
        raise UserError(f"{describe(image)} is too large for this machine's memory; make it smaller") from None


def path_of(image: ImageLike) -> str | None:
    """The file that the image is to be read from."""
    return str(image) if isinstance(image, str | Path) else None


def describe(image: ImageLike) -> str:
    """Return the image's name in messages."""
    if isinstance(image, np.ndarray):
        return f"An array of {image.dtype} and shape {image.shape}"
    if isinstance(image, Image.Image):
        return f"A picture of mode {image.mode} and {image.width} x {image.height} pixels"
    return f"Image {image}"


def _converted(picture: Image.Image, max_pixels: int) -> Image.Image:
    check_pixels(describe(picture), picture, max_pixels)
    try:
        with pillow_errors():
            upright = ImageOps.exif_transpose(picture)
        return as_rgb(upright)
    except UNREADABLE as error:
        raise UserError(f"{describe(picture)} cannot be read ({error}); restore or replace its file") from error


def _from_array(array: np.ndarray) -> Image.Image:
    usable = array.dtype in (np.uint8, np.uint16) and array.size > 0
    if not usable or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise UserError(
            f"{describe(array)} is no image; give uint8 or uint16 of shape [height, width] or [height, width, 3]"
        )
    if array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    channels = array.reshape(*array.shape[:2], -1)[..., :3]
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(channels, (*array.shape[:2], 3))))
