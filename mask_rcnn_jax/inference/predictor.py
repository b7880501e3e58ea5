"""Predicts on images of any kind and size, with the code that evaluation runs.

Images are resized as in evaluation and padded to one of a few canvases, so that few programs are compiled: those of
the model, their transposes for portrait images, and longer ones where an image asks for them.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, overload, runtime_checkable

import jax
import numpy as np
from jaxtyping import Num
from PIL import Image

from mask_rcnn_jax.data import DataConfig, resized_size
from mask_rcnn_jax.data.augment.transforms import resize_picture
from mask_rcnn_jax.data.batching.canvases import landscape_canvases
from mask_rcnn_jax.data.config import Canvas
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.batched import predict
from mask_rcnn_jax.inference.checkpoint import Model, load_model
from mask_rcnn_jax.inference.images import ImageLike, open_picture, path_of
from mask_rcnn_jax.inference.results.detections import Detections
from mask_rcnn_jax.ranges import Range
from mask_rcnn_jax.structures import EvalBatch

OnError = Callable[[ImageLike, UserError], None]


@runtime_checkable
class Streaming(Protocol):
    """Whatever goes from images to the detections of each: `Predictor`, and what is made around one."""

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(rows, height, width) of each program that was run so far."""
        ...

    def stream(self, images: Iterable[ImageLike], on_error: OnError | None = None) -> Iterator[Detections]:
        """The instances in each image, in order.

        An image that cannot be used is handed to `on_error`, with what is wrong, and left out; without, it is an error.
        """
        ...


# Batches that may be begun after an image, for each of the model's canvases, before its own, not yet full, is run.
_PATIENCE = 4


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image resized for a model."""

    canvas: Canvas
    pixels: Num[np.ndarray, "h w 3"]
    original_size: tuple[int, int]  # (height, width)
    path: str | None


class Predictor:
    """Finds instances in images. Called with one image or a list of them; `stream` takes any number.

    An image is a path, a picture of Pillow, or an array (`inference.images.open_picture` says which); the result is in
    its pixels. Raises `UserError` for an image that cannot be used.
    """

    def __init__(self, model: Model, *, score_threshold: float | None = None, batch_size: int | None = None):
        """`score_threshold` is the score above which instances count (the model's own unless given), `batch_size` the
        number of images run at once: one on CPU and four a device elsewhere unless given, and fewer where a call has
        no more images than fewer hold. Raises `UserError` for a model that is given its proposals.
        """
        model.check_proposing()
        if score_threshold is not None:
            Range(0, 1).check(score_threshold, "score_threshold")
        if batch_size is not None:
            Range(1).check(batch_size, "batch_size")
        head = model.config.box_head
        # A higher threshold only leaves out what was found: the program, which may be in the cache, stays the same.
        lowest = head.score_threshold if score_threshold is None else min(score_threshold, head.score_threshold)
        self._config = replace(model.config, box_head=replace(head, score_threshold=lowest))
        self._threshold = lowest if score_threshold is None else score_threshold
        self._model = model
        devices = jax.local_device_count()
        sizes = (1,) if jax.default_backend() == "cpu" else (1, devices, 4 * devices)
        self._batch_sizes = sizes if batch_size is None else (batch_size,)
        self._canvases = canvases(model.data, model.canvas_divisor)
        self._shapes: set[tuple[int, int, int]] = set()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        which: str = "best",
        *,
        average: bool = False,
        score_threshold: float | None = None,
        batch_size: int | None = None,
    ) -> "Predictor":
        """The predictor of a run's workdir, of an imported model, or of one checkpoint; see `load_model`."""
        return cls(load_model(path, which, average), score_threshold=score_threshold, batch_size=batch_size)

    @property
    def model(self) -> Model:
        """The loaded model."""
        return self._model

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(batch size, height, width) of each program that was run so far; each is compiled once."""
        return sorted(self._shapes)

    @property
    def compilations(self) -> int:
        """The number of programs compiled so far, or taken from the cache."""
        return len(self._shapes)

    @overload
    def __call__(self, image: ImageLike) -> Detections: ...
    @overload
    def __call__(self, image: list[ImageLike] | tuple[ImageLike, ...]) -> list[Detections]: ...
    def __call__(self, image: ImageLike | list[ImageLike] | tuple[ImageLike, ...]) -> Detections | list[Detections]:
        """The instances in an image, or in each of a list."""
        if isinstance(image, list | tuple):
            return list(self.stream(image))
        return self.run([self.prepare(image)])[0]

    def stream(self, images: Iterable[ImageLike], on_error: OnError | None = None) -> Iterator[Detections]:
        """The instances in each image, in order; a few batches of resized images are held at a time.

        It asks for the next images before it gives the detections of one. Where they come one by one, as from a camera,
        call the predictor with each instead. An image that cannot be used is handed to `on_error`, with what is wrong,
        and left out; without, it is an error.
        """
        paths: dict[int, str | None] = {}
        done: dict[int, Detections] = {}
        due = 0
        batches = self._batches(self._prepared(images, on_error), paths, self._batch_size(images))
        for index, found in self._detect(batches):
            done[index] = replace(found, path=paths.pop(index))
            while due in done:
                yield done.pop(due)
                due += 1

    def prepare(self, image: ImageLike) -> Prepared:
        """Read and resize an image. Threads may call it at once. Raises `UserError` for one that cannot be used."""
        data = self._model.data
        picture = open_picture(image, data.max_pixels)
        canvas, pixels = resized_for(picture, data, self._canvases)
        return Prepared(canvas, pixels, (picture.height, picture.width), path_of(image))

    def run(self, images: Sequence[Prepared]) -> list[Detections]:
        """The instances in each prepared image. Threads may call it at once; nothing waits for another call."""
        paths: dict[int, str | None] = {}
        batches = self._batches(images, paths, self._batch_size(images))
        found = dict(self._detect(batches))
        return [replace(found[index], path=path) for index, path in paths.items()]

    def _batch_size(self, images: Iterable[object]) -> int:
        """Return the number for a call, which keeps it: programs of other sizes may differ in their last bits."""
        count = len(images) if isinstance(images, Sized) else math.inf
        return next((size for size in self._batch_sizes if size >= count), self._batch_sizes[-1])

    def _detect(self, batches: Iterable[EvalBatch]) -> Iterator[tuple[int, Detections]]:
        names = self._model.class_names
        return predict(self._config, self._model.variables, batches, class_names=names, min_score=self._threshold)

    def _prepared(self, images: Iterable[ImageLike], on_error: OnError | None) -> Iterator[Prepared]:
        """Images resized, a few ahead, in threads: Pillow works outside the interpreter's lock."""
        threads = min(4, os.cpu_count() or 1)
        ahead: deque[tuple[ImageLike, Future[Prepared]]] = deque()
        rest = iter(images)
        with ThreadPoolExecutor(threads) as pool:
            try:
                for image in rest:
                    ahead.append((image, pool.submit(self.prepare, image)))
                    if len(ahead) > threads:
                        yield from _taken(*ahead.popleft(), on_error)
                while ahead:
                    yield from _taken(*ahead.popleft(), on_error)
            finally:
                pool.shutdown(cancel_futures=True)

    def _batches(self, images: Iterable[Prepared], paths: dict[int, str | None], size: int) -> Iterator[EvalBatch]:
        """Batches of `size` images of one canvas, as `predict` takes them; `image_ids` number the images from 0.

        One that is alone on its canvas is run when `_PATIENCE` batches for each canvas could have been filled since.
        """
        waiting: dict[Canvas, list[tuple[int, Prepared]]] = {}
        patience = _PATIENCE * size * len(landscape_canvases(self._model.data.in_evaluation()))
        for index, image in enumerate(images):
            paths[index] = image.path
            waiting.setdefault(image.canvas, []).append((index, image))
            for canvas, members in list(waiting.items()):
                if len(members) == size or index - members[0][0] >= patience:
                    yield self._batch(canvas, waiting.pop(canvas), size)
        for canvas, members in waiting.items():
            yield self._batch(canvas, members, size)

    def _batch(self, canvas: Canvas, members: Sequence[tuple[int, Prepared]], size: int) -> EvalBatch:
        self._shapes.add((size, *canvas))
        batch = EvalBatch(
            images=np.zeros((size, *canvas, 3), members[0][1].pixels.dtype),
            image_sizes=np.zeros((size, 2), np.int32),
            original_sizes=np.zeros((size, 2), np.int32),
            image_ids=np.zeros(size, np.int64),
            valid=np.arange(size) < len(members),
        )
        for row, (index, image) in enumerate(members):
            height, width = image.pixels.shape[:2]
            batch.images[row, :height, :width] = image.pixels
            batch.image_sizes[row] = height, width
            batch.original_sizes[row] = image.original_size
            batch.image_ids[row] = index
        return batch


def canvases(data: DataConfig, divisor: int) -> list[Canvas]:
    """List the canvases for landscape images: those of evaluation, by area, and longer ones for what they cannot hold.

    Sides are multiples of `divisor`. Any image fits the last one, and there are few: each of the longer ones is twice
    as long as the one before.
    """
    data = data.in_evaluation()
    height = max(data.canvas[0], whole_multiple(min(data.short_side_eval, data.max_side), divisor))
    width, longest = max(data.canvas[1], height), whole_multiple(data.max_side, divisor)
    found = [*landscape_canvases(data), (height, width)]
    while width < longest:
        width = min(2 * width, longest)
        found.append((height, width))
    return list(dict.fromkeys(found))


def resized_for(
    picture: Image.Image, data: DataConfig, options: Sequence[Canvas]
) -> tuple[Canvas, Num[np.ndarray, "h w 3"]]:
    """The picture resized as in evaluation, and the first of the landscape canvases `options`, or its transpose for a
    portrait image, that holds it.
    """
    size = resized_size(picture.height, picture.width, data.short_side_eval, data.max_side, data.resize)
    short, long = sorted(size)
    height, width = next(canvas for canvas in options if short <= canvas[0] and long <= canvas[1])
    canvas = (width, height) if picture.height > picture.width else (height, width)
    return canvas, resize_picture(picture, size, data.resize)


def whole_multiple(side: int, divisor: int) -> int:
    """Round a side up to a multiple of `divisor`."""
    return -(-side // divisor) * divisor


def _taken(image: ImageLike, result: Future[Prepared], on_error: OnError | None) -> Iterator[Prepared]:
    try:
        yield result.result()
    except UserError as error:
        if on_error is None:
            raise
        on_error(image, error)
