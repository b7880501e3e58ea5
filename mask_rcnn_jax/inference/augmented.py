"""Test-time augmentation: an image at several sizes and mirrored, and one answer from all of them.

As in Detectron2's `GeneralizedRCNNWithTTA`: the boxes found in every version are merged by one suppression within each
class, every version then says what mask the merged boxes have, and these probabilities are averaged. So are the
heatmaps of keypoints, of which a mirror makes left ones right ones, and what any other head answers.

Shape letters: `V` versions of one size (the image as it is, and mirrored), `H W` padded height and width, `D` detection
slots.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num
from PIL import Image

from mask_rcnn_jax.data import DataConfig, resized_size
from mask_rcnn_jax.data.augment.keypoint_flips import mirrored
from mask_rcnn_jax.data.augment.transforms import mirror
from mask_rcnn_jax.data.config import Canvas
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.batched import by_image
from mask_rcnn_jax.inference.checkpoint import Model
from mask_rcnn_jax.inference.images import ImageLike, open_picture, path_of
from mask_rcnn_jax.inference.predictor import OnError, canvases, resized_for, whole_multiple
from mask_rcnn_jax.inference.results.detections import Detections
from mask_rcnn_jax.models import MaskRCNNConfig, Variables, networks, rcnn
from mask_rcnn_jax.models.checks import check_found
from mask_rcnn_jax.models.context import Features
from mask_rcnn_jax.models.heads.base import Head
from mask_rcnn_jax.models.heads.box import suppress
from mask_rcnn_jax.ranges import Items, NotNegative, Range, check
from mask_rcnn_jax.structures import EvalBatch, PaddedDetections


@dataclass(frozen=True)
class AugmentationConfig:
    """The versions of an image that are looked at."""

    # Of the size that the model evaluates at.
    scales: Annotated[tuple[Annotated[float, Range(0.1, 10)], ...], Items(1)] = (0.75, 1.0, 1.25)
    flip: bool = True  # each of them mirrored left to right, too
    # The keypoint, from 0, that each becomes in a mirror; None: as in training.
    mirrored_keypoints: tuple[NotNegative, ...] | None = None

    def __post_init__(self) -> None:
        check(self)


class _Version(NamedTuple):
    """The image at one size, as it is and mirrored."""

    images: Num[np.ndarray, "V H W 3"]
    size: Int[np.ndarray, "2"]  # (height, width) without padding


class _Mirror(NamedTuple):
    """The versions of one size."""

    flips: tuple[bool, ...]  # for each, does it show the image mirrored?
    keypoints: tuple[int, ...]  # the keypoint that each becomes in a mirror


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("features", "found", "size"), meta_fields=("padded_size",)
)
@dataclass(frozen=True)
class _View:
    """The image at one size as the backbone and the box heads see it; boxes are in its pixels."""

    features: Features
    found: PaddedDetections
    size: Int[Array, "2"]
    padded_size: tuple[int, int]


class AugmentedPredictor:
    """Finds instances as `Predictor` does, image by image, by looking at several versions of each.

    All runs on the first device. For each size there is one program a canvas, and one that merges. The features of all
    versions of an image are held at once: of R50-FPN at the default sizes some 1.5 GB in float32.
    """

    def __init__(
        self, model: Model, config: AugmentationConfig = AugmentationConfig(), *, score_threshold: float | None = None
    ):
        """`score_threshold` as for `Predictor`. Raises `UserError` where the mirrored keypoints are not known, and as
        `Predictor` does.
        """
        model.check_proposing()
        if score_threshold is not None:
            Range(0, 1).check(score_threshold, "score_threshold")
        head = model.config.box_head
        lowest = head.score_threshold if score_threshold is None else min(score_threshold, head.score_threshold)
        self._threshold = lowest if score_threshold is None else score_threshold
        self._config = replace(model.config, box_head=replace(head, score_threshold=lowest))
        self._model = model
        self._mirror = _Mirror((False, True) if config.flip else (False,), _mirrored_keypoints(model, config))
        self._data = [_scaled(model.data, scale, model.canvas_divisor) for scale in config.scales]
        self._shapes: set[tuple[int, int, int]] = set()

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(versions, height, width) of each size and canvas that was run so far."""
        return sorted(self._shapes)

    def stream(self, images: Iterable[ImageLike], on_error: OnError | None = None) -> Iterator[Detections]:
        """The instances in each image, in order; see `Predictor.stream`."""
        for image in images:
            try:
                picture = open_picture(image, self._model.data.max_pixels)
            except UserError as error:
                if on_error is None:
                    raise
                on_error(image, error)
                continue
            yield self._detect(picture, path_of(image))

    def __call__(self, image: ImageLike) -> Detections:
        """The instances in one image."""
        return next(self.stream([image]))

    def _detect(self, picture: Image.Image, path: str | None) -> Detections:
        config, data = self._config, self._model.data
        size = resized_size(picture.height, picture.width, data.short_side_eval, data.max_side, data.resize)
        variables, mirror = self._model.variables, self._mirror
        versions = (self._version(picture, data) for data in self._data)
        views = [_look(config, variables, mirror.flips, version.images, version.size) for version in versions]
        common = np.array(size, np.int32)
        found = _merge(config, mirror.flips, common, views)
        said = (_describe(config, variables, mirror, view, found, common) for view in views)
        total = functools.reduce(functools.partial(jax.tree.map, jnp.add), said)
        found = _finish(config, variables, len(views), found, total)
        original_size = np.array([picture.height, picture.width], np.int32)
        of_size = np.broadcast_to(np.uint8(0), (1, *size, 3))
        batch = EvalBatch(of_size, common[None], original_size[None], np.zeros(1, np.int64), np.ones(1, bool))
        names = self._model.class_names
        ((_, whole),) = by_image(found, batch, config.paste, class_names=names, min_score=self._threshold)
        return replace(whole, path=path)

    def _version(self, picture: Image.Image, data: DataConfig) -> _Version:
        canvas, pixels = resized_for(picture, data, canvases(data, self._model.canvas_divisor))
        height, width = pixels.shape[:2]
        images = np.zeros((len(self._mirror.flips), *canvas, 3), pixels.dtype)
        self._shapes.add((len(self._mirror.flips), *canvas))
        for row, flip in enumerate(self._mirror.flips):
            images[row, :height, :width] = mirror(pixels) if flip else pixels
        return _Version(images, np.array([height, width], np.int32))


def _scaled(data: DataConfig, scale: float, divisor: int) -> DataConfig:
    """Evaluation at another size, on canvases that grow with it."""

    def scaled(canvas: Canvas) -> Canvas:
        height, width = (whole_multiple(round(scale * side), divisor) for side in canvas)
        return height, width

    return replace(
        data,
        short_side_eval=max(round(scale * data.short_side_eval), 1),
        max_side=max(round(scale * data.max_side), 1),
        canvas_eval=scaled(data.in_evaluation().canvas),
        smaller_canvases_eval=tuple(map(scaled, data.smaller_canvases_eval)),
    )


def _mirrored_keypoints(model: Model, config: AugmentationConfig) -> tuple[int, ...]:
    heads = model.config.all_heads.values()
    if not config.flip or all(head.needs != "keypoints" for head in heads):
        return ()
    own = model.config.keypoint_head
    count = len(model.keypoint_names) if own is None else own.num_keypoints
    places = config.mirrored_keypoints
    if places is None and model.keypoint_names:
        places = tuple(mirrored(model.keypoint_names, model.data.keypoint_flips).tolist())
    if places is None or sorted(places) != list(range(count)):
        raise UserError(
            f"which of the model's {count} keypoints mirror each other is not known; do not mirror (--no-flip, or "
            "flip=False), or set mirrored_keypoints to the number, from 0, that each becomes in a mirror"
        )
    return places


@functools.partial(jax.jit, static_argnums=(0, 2))
def _look(
    config: MaskRCNNConfig,
    variables: Variables,
    flips: tuple[bool, ...],
    images: Num[Array, "V H W 3"],
    size: Int[Array, "2"],
) -> _View:
    model = networks(config, variables)
    context = rcnn.see(config, model, images, jnp.broadcast_to(size, (len(flips), 2)))
    return _View(context.features, rcnn.find_boxes(config, model, context), size, context.padded_size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _merge(
    config: MaskRCNNConfig, flips: tuple[bool, ...], common: Int[Array, "2"], views: list[_View]
) -> PaddedDetections:
    """The best boxes of all versions, as those of one image, in the pixels of the size `common`."""
    boxes = jnp.concatenate([_moved(flips, view.found.boxes, view.size, common).reshape(-1, 4) for view in views])
    scores, classes, valid = (
        jnp.concatenate([getattr(view.found, name).reshape(-1) for view in views])
        for name in ("scores", "classes", "valid")
    )
    merged = suppress(config.box_head, boxes, scores, classes, valid)
    return jax.tree.map(lambda x: x[None], merged)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _describe(
    config: MaskRCNNConfig,
    variables: Variables,
    mirror: _Mirror,
    view: _View,
    found: PaddedDetections,
    common: Int[Array, "2"],
) -> dict[str, Any]:
    """The mean of what each head says of the instances by what is seen at one size, unmirrored."""
    model, count = networks(config, variables), len(mirror.flips)
    of_each = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), found)
    of_each = replace(of_each, boxes=_moved(mirror.flips, of_each.boxes, common, view.size))
    sizes = jnp.broadcast_to(view.size, (count, 2))
    context = rcnn.context_of(config, model, view.features, view.padded_size, sizes)

    def mean(head: Head) -> Any:
        answer = head.answer(context, of_each)
        if any(x.shape[:2] != of_each.valid.shape for x in jax.tree.leaves(answer)):
            raise UserError(
                f"{type(head).__name__} answers for images and not for instances, which is not averaged over versions"
                " of an image; predict without test-time augmentation"
            )
        versions = [jax.tree.map(lambda x, row=row: x[row : row + 1], answer) for row in range(count)]
        turned = [
            head.unmirrored(version, mirror.keypoints) if flip else version
            for flip, version in zip(mirror.flips, versions, strict=True)
        ]
        return jax.tree.map(lambda *of_versions: jnp.stack(of_versions).mean(axis=0), *turned)

    return {name: mean(head) for name, head in model.heads.items()}


@functools.partial(jax.jit, static_argnums=(0, 2))
def _finish(
    config: MaskRCNNConfig, variables: Variables, count: int, found: PaddedDetections, total: dict[str, Any]
) -> PaddedDetections:
    """Lay the means of what heads say at `count` sizes, of which `total` is the sum, into what was found."""
    for name, head in networks(config, variables).heads.items():
        mean = jax.tree.map(lambda x: x / count, total[name])
        found = check_found(name, head, found, head.add(found, mean))
    if maps := [*found.maps, *([] if found.stuff is None else ["stuff"])]:
        raise UserError(
            f"maps ({', '.join(maps)}) are not averaged over versions of an image; predict without test-time"
            " augmentation"
        )
    return found


def _moved(
    flips: tuple[bool, ...], boxes: Float[Array, "V D 4"], size: Int[Array, "2"], to: Int[Array, "2"]
) -> Float[Array, "V D 4"]:
    """Boxes of versions of one `size` (height, width) in those of another, mirrored where `flips` says."""
    scale = to.astype(boxes.dtype) / size.astype(boxes.dtype)
    scaled = boxes * jnp.tile(scale[::-1], 2)
    x1, y1, x2, y2 = jnp.moveaxis(scaled, -1, 0)
    width = to[1].astype(boxes.dtype)
    turned = jnp.stack([width - x2, y1, width - x1, y2], axis=-1)
    return jnp.where(jnp.array(flips)[:, None, None], turned, scaled)
