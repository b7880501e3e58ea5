"""Selective search (Uijlings et al. 2013), by OpenCV: the boxes of regions that are merged from small, even ones."""

import ctypes
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
from PIL import Image

from mask_rcnn_jax.data.augment.reading import read_picture
from mask_rcnn_jax.data.batching.workers import end_with_parent
from mask_rcnn_jax.data.config import DataConfig
from mask_rcnn_jax.data.records import BoxProposals, Record
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.extras import require

Mode = Literal["fast", "quality"]


@dataclass(frozen=True)
class SelectiveSearch:
    """Settings of a search. Called with a record, it returns the proposals of its image.

    The same image always gets the same ones with one version of OpenCV and one C library, whose random numbers are a
    part of the order.
    """

    mode: Mode = "fast"  # quality merges in more colour spaces, by more measures, and takes several times as long
    side: int = 500  # pixels to which the longer side of larger images is reduced for the search
    most: int = 2000  # proposals of an image
    data: DataConfig = DataConfig()  # how images are read

    def __call__(self, record: Record) -> BoxProposals:
        """The proposals of an image, best first; none of one that cannot be read, where `broken_images` is "skip".

        Raises `UserError` where it cannot be read otherwise, or OpenCV is missing.
        """
        segmentation = contributed_segmentation()
        try:
            picture = read_picture(record, self.data)
        except UserError:
            if self.data.broken_images == "fail":
                raise
            return BoxProposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        scale = min(1.0, self.side / max(picture.size))
        width, height = (max(round(side * scale), 1) for side in picture.size)
        reduced = picture.resize((width, height), Image.Resampling.BILINEAR)
        search = segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.ascontiguousarray(np.asarray(reduced)[..., ::-1]))  # blue comes first
        if self.mode == "fast":
            search.switchToSelectiveSearchFast()
        else:
            search.switchToSelectiveSearchQuality()
        # Regions are ordered by when they were merged times a random number, which is that of C and not of OpenCV.
        ctypes.CDLL(None).srand(0)
        found = np.asarray(search.process(), np.float64).reshape(-1, 4)[: self.most]
        stretch = np.array([record.width / width, record.height / height])
        corners = np.concatenate([found[:, :2] * stretch, (found[:, :2] + found[:, 2:]) * stretch], axis=1)
        return BoxProposals(corners.astype(np.float32), -np.arange(len(found), dtype=np.float32))


def contributed_segmentation() -> Any:
    """OpenCV's module of the search. Raises `UserError` where it is missing."""
    require("proposals", "selective search")
    import cv2  # pyright: ignore[reportMissingImports]  an extra

    if not hasattr(cv2, "ximgproc"):
        raise UserError(
            "selective search needs OpenCV with its contributed modules, and the cv2 that is installed has none; run:"
            " pip uninstall opencv-python opencv-python-headless, and then pip install 'mask-rcnn-jax[proposals]'"
        )
    cv2.setNumThreads(1)  # each process has an image of its own
    return cv2.ximgproc.segmentation


def search_all(search: SelectiveSearch, records: Sequence[Record], workers: int) -> Iterator[BoxProposals]:
    """The proposals of every image, in the order of the records, from so many processes. Raises as `search` does."""
    # A process of its own for each: the state of C's random numbers is one of the process.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin)
    try:
        # The segmentations of a record would bring those of the whole dataset.
        yield from pool.map(search, (replace(record, segmentations=()) for record in records))
    except BrokenProcessPool as error:
        raise UserError(
            "A process that searches was ended from outside, most likely because memory ran out; lower --workers."
            f" ({error})"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def default_workers() -> int:
    """As many processes as there are processors."""
    return os.cpu_count() or 1


def _begin() -> None:
    """Leave Ctrl-C to the process that started this one, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(0, 1)
