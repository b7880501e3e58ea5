"""Runs a model over batches and hands out what it found, image by image.

Shape letters: `B` images, `H W` padded height and width, `K` classes of the model, `h w` sides of a map.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, Shaped

from mask_rcnn_jax import models
from mask_rcnn_jax.inference.results.detections import Detections
from mask_rcnn_jax.inference.results.masks import encode_masks
from mask_rcnn_jax.inference.results.panoptic import stuff_kinds
from mask_rcnn_jax.models import MaskRCNNConfig, Variables
from mask_rcnn_jax.ops import PasteConvention
from mask_rcnn_jax.sharding import EVERYWHERE, ROWS, by_rows, data_mesh, everywhere
from mask_rcnn_jax.structures import EvalBatch, PaddedDetections, Proposals

# Takes the configuration, the variables, images [B, H, W, 3] and their sizes [B, 2]; and `proposals=`, of a batch that
# has them.
DetectFn = Callable[..., PaddedDetections]


def predict(
    config: MaskRCNNConfig,
    variables: Variables,
    batches: Iterable[EvalBatch],
    detect: DetectFn = models.detect,
    *,
    class_names: tuple[str, ...] = (),
    min_score: float | None = None,
    class_of: Int[np.ndarray, " K"] | None = None,
) -> Iterator[tuple[int, Detections]]:
    """The id of each image of `batches` and what is found in it, in their order, as `by_image` says.

    A batch is shared by the process's devices where they divide it, else one of them takes it. `detect` is handed the
    proposals of batches that have them, and compiled once for each shape of images.
    """
    take_apart = functools.partial(
        by_image, convention=config.paste, class_names=class_names, min_score=min_score, class_of=class_of
    )
    if jax.process_count() > 1:  # every process holds them all
        variables = jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, variables)
    placed: dict[Mesh, Variables] = {}
    pending = None
    for batch in batches:
        mesh = _mesh(len(batch.images))
        if mesh not in placed:
            placed[mesh] = jax.device_put(variables, everywhere(mesh))
        proposals = () if batch.proposals is None else (batch.proposals,)
        inputs = jax.device_put((batch.images, batch.image_sizes, *proposals), by_rows(mesh))
        detections = detection_program(detect, config, mesh, bool(proposals))(placed[mesh], *inputs)
        # The devices work on this batch while the host takes the last one apart.
        if pending is not None:
            yield from take_apart(*pending)
        pending = detections, batch
    if pending is not None:
        yield from take_apart(*pending)


def _mesh(batch_size: int) -> Mesh:
    devices = jax.local_devices()
    return data_mesh(devices if batch_size % len(devices) == 0 else devices[:1])


@functools.lru_cache(maxsize=8)
def detection_program(
    detect: DetectFn, config: MaskRCNNConfig, mesh: Mesh, with_proposals: bool
) -> Callable[..., PaddedDetections]:
    """Return the program of a batch, whose rows the mesh shares: of variables, images, their sizes, and proposals."""

    def detect_in(variables: Variables, images: Any, sizes: Any, proposals: Proposals) -> PaddedDetections:
        return detect(config, variables, images, sizes, proposals=proposals)

    run, in_specs = functools.partial(detect, config), (EVERYWHERE, ROWS, ROWS)
    if with_proposals:
        run, in_specs = detect_in, (*in_specs, ROWS)
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=ROWS))


def by_image(
    detections: PaddedDetections,
    batch: EvalBatch,
    convention: PasteConvention,
    *,
    class_names: tuple[str, ...] = (),
    min_score: float | None = None,
    class_of: Int[np.ndarray, " K"] | None = None,
) -> Iterator[tuple[int, Detections]]:
    """The id of each image of a batch, and its detections in pixels of the original image.

    Boxes are clipped to the image, and masks pasted into it by `convention`, that of `ops.paste_masks`. Rows and slots
    that are padding (`valid` False) are left out, as are instances whose score is not above `min_score`. `class_of` is
    the number that `Detections` give each of the model's classes, -1 for those whose instances are left out, and
    `class_names` are names by that number. Nothing that is left out is pasted.

    Of the batch's `images` only the shape is looked at.
    """
    found: PaddedDetections = jax.device_get(detections)
    for row in np.flatnonzero(batch.valid):
        kept, scores = found.valid[row], np.asarray(found.scores[row], np.float32)
        classes = np.where(kept, found.classes[row], 0)  # whatever stands in padding
        if min_score is not None:
            kept = kept & (scores > min_score)
        if class_of is not None:
            classes = class_of[classes]
            kept = kept & (classes >= 0)
        height, width = (int(side) for side in batch.original_sizes[row])
        size = batch.image_sizes[row]
        resized_height, resized_width = size
        scale = np.array([width / resized_width, height / resized_height] * 2, np.float32)
        limit = np.array([width, height] * 2, np.float32)
        boxes = np.clip(np.asarray(found.boxes[row][kept], np.float32) * scale, 0, limit)
        rles = keypoints = kinds = None
        if found.masks is not None:
            masks = np.asarray(found.masks[row][kept], np.float32)
            rles = tuple(encode_masks(boxes, masks, (height, width), convention))
        if found.keypoints is not None:
            keypoints = np.asarray(found.keypoints[row][kept], np.float32) * np.append(scale[:2], np.float32(1))
        if found.stuff is not None:
            # Uncut: pixels at the image's edge lie between its last cells and those of the padding.
            logits = np.asarray(found.stuff[row])
            kinds = stuff_kinds(logits, batch.images.shape[1:3], tuple(size.tolist()), (height, width))
        yield (
            int(batch.image_ids[row]),
            Detections(
                height=height,
                width=width,
                boxes=boxes,
                scores=scores[kept],
                classes=np.asarray(classes[kept], np.int32),
                class_names=class_names,
                rles=rles,
                keypoints=keypoints,
                extras={name: _as_float32(np.asarray(values[row])[kept]) for name, values in found.extras.items()},
                maps={
                    name: _as_float32(_without_padding(np.asarray(values[row]), size, batch.images.shape[1:3]))
                    for name, values in found.maps.items()
                },
                stuff=kinds,
            ),
        )


def _as_float32(values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """A copy, which keeps no batch alive; floating point of any width becomes float32."""
    return np.array(values, np.float32 if jnp.issubdtype(values.dtype, jnp.floating) else values.dtype)


def _without_padding(
    grid: Shaped[np.ndarray, "h w ..."], size: Int[np.ndarray, "2"], padded_size: tuple[int, int]
) -> Shaped[np.ndarray, "rows columns ..."]:
    """The cells of a grid over the padded image that the image itself, of `size` (height, width), touches."""
    sides = zip(grid.shape[:2], size.tolist(), padded_size, strict=True)
    rows, columns = (-(-cells * side // padded) for cells, side, padded in sides)
    return grid[:rows, :columns]
