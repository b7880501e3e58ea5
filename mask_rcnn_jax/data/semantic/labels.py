"""Reads the PNG files of an image's segments, and of its kinds of stuff.

`H W` are the sides of the image. Kind 0 stands for all things, 1.. are the dataset's kinds of stuff.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from mask_rcnn_jax.data.records import Record
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.media.image_files import UNREADABLE, opened_image, pillow_errors, with_retries
from mask_rcnn_jax.structures import IGNORED


def read_kinds(record: Record) -> UInt8[np.ndarray, "H W"]:
    """The kind that each pixel of the record's image shows, `IGNORED` where nothing is known.

    From the prepared file where the labels name one, else from the segments. Raises `UserError` naming the file where
    it is missing, cannot be read, is of another size, or holds what there is not.
    """
    labels = _labels_of(record)
    if labels.kinds_path is None:
        numbers = read_numbers(record)
        segments = labels.segments[np.argsort(labels.segments[:, 0])]
        known = np.concatenate([[0], segments[:, 0]])
        kinds = np.concatenate([[IGNORED], segments[:, 1]]).astype(np.uint8)
        return kinds[np.searchsorted(known, numbers)]
    kinds = _read_png(labels.kinds_path, record, "of a kind a pixel")
    if kinds.ndim != 2 or kinds.dtype != np.uint8:
        raise UserError(
            f"{labels.kinds_path} does not hold one number from 0 to 255 a pixel; write a PNG in grey or with a palette"
        )
    unknown = kinds[(kinds >= labels.num_kinds) & (kinds != IGNORED)]
    if unknown.size:
        raise UserError(
            f"{labels.kinds_path} holds {unknown[0]}, and the kinds are 0 (things) to {labels.num_kinds - 1}, or"
            f" {IGNORED} for what is not known; write it again, or set data.source.semantic_folder to none"
        )
    return kinds


def read_numbers(record: Record) -> Int[np.ndarray, "H W"]:
    """The number of the segment that each pixel belongs to, R + 256 G + 65536 B of the PNG; 0 where there is none.

    Raises `UserError` as `read_kinds`.
    """
    labels = _labels_of(record)
    pixels = _read_png(labels.path, record, "of segments in RGB")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise UserError(f"{labels.path} is no PNG in RGB, whose colours are the numbers of segments; export it again")
    numbers = pixels.astype(np.int64) @ np.array([1, 256, 65536])
    known = np.sort(np.concatenate([[0], labels.segments[:, 0]]))
    place = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
    unknown = numbers[known[place] != numbers]
    if unknown.size:
        raise UserError(
            f"{labels.path} holds the segment {unknown[0]}, which the image's 'segments_info' does not list; export"
            " both again"
        )
    return numbers


def _labels_of(record: Record) -> Any:
    if record.semantic is None:
        raise ValueError(f"{record.path} has no semantic labels")
    return record.semantic


def _read_png(path: str, record: Record, what: str) -> np.ndarray:
    """The pixels as they are stored, of a file that has the record's size by its header."""

    def read() -> np.ndarray:
        with opened_image(Path(path)) as picture, pillow_errors():
            if picture.size != (record.width, record.height):
                raise UserError(
                    f"{path} is {picture.width} x {picture.height}, and its image {record.path} {record.width} x"
                    f" {record.height}; export it again"
                )
            return np.asarray(picture)

    try:
        return with_retries(read)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; put the PNG {what} of {record.path} there") from None
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error}); restore or replace the file") from error
