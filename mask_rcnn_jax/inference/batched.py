"""Runs a model over batches and hands out what it found, image by image.

Shape letters: `B` images, `H W` padded height and width, `D` detection slots, `n` detections of one image, `M` side of
a predicted mask, `J` keypoints of an instance, `h w` sides of a map.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from mask_rcnn_jax import models
from mask_rcnn_jax.models import MaskRCNNConfig, Variables
from mask_rcnn_jax.sharding import EVERYWHERE, ROWS, by_rows, data_mesh, everywhere
from mask_rcnn_jax.structures import PaddedDetections

DetectFn = Callable[[MaskRCNNConfig, Variables, Num[Array, "B H W 3"], Int[Array, "B 2"]], PaddedDetections]


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """Instances found in one image, best score first; no padding."""

    image_id: int
    height: int  # of the original image, pixels
    width: int
    boxes: Float[np.ndarray, "n 4"]  # (x1, y1, x2, y2), pixels of the original image
    scores: Float[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]  # 0..K-1
    masks: Float[np.ndarray, "n M M"] | None  # probabilities inside the box; None for a model without masks
    # (x, y, score), pixels of the original image, COCO's pixel index + 0.5; None for a model without keypoints
    keypoints: Float[np.ndarray, "n J 3"] | None = None
    # What heads of others say, by name: of each instance, and of the image, on a grid of equal cells of which the last
    # of a row or column may reach beyond it.
    extras: Mapping[str, Shaped[np.ndarray, "n ..."]] = field(default_factory=dict)
    maps: Mapping[str, Shaped[np.ndarray, "h w ..."]] = field(default_factory=dict)

    def take(self, which: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "ImageDetections":
        """The instances that `which`, their indices or a flag for each, names, in its order."""
        return replace(
            self,
            boxes=self.boxes[which],
            scores=self.scores[which],
            classes=self.classes[which],
            masks=None if self.masks is None else self.masks[which],
            keypoints=None if self.keypoints is None else self.keypoints[which],
            extras={name: values[which] for name, values in self.extras.items()},
        )


def predict(
    config: MaskRCNNConfig,
    variables: Variables,
    batches: Iterable[Mapping[str, np.ndarray]],
    detect: DetectFn = models.detect,
) -> Iterator[ImageDetections]:
    """Detections of each image of `batches`, in their order; rows that are padding (`valid` False) are left out.

    `batches` have the keys of `data.eval_batches`: images [B, H, W, 3], image_sizes and original_sizes [B, 2] (height,
    width), image_ids and valid [B]. A batch is shared by the process's devices where they divide it, else one of them
    takes it. `detect` is compiled once for each shape of images.
    """
    if jax.process_count() > 1:  # every process holds them all
        variables = jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, variables)
    placed: dict[Mesh, Variables] = {}
    pending = None
    for batch in batches:
        mesh = _mesh(len(batch["images"]))
        if mesh not in placed:
            placed[mesh] = jax.device_put(variables, everywhere(mesh))
        inputs = jax.device_put((batch["images"], batch["image_sizes"]), by_rows(mesh))
        detections = _compiled(detect, config, mesh)(placed[mesh], *inputs)
        # The devices work on this batch while the host takes the last one apart.
        if pending is not None:
            yield from by_image(*pending)
        pending = detections, batch
    if pending is not None:
        yield from by_image(*pending)


def _mesh(batch_size: int) -> Mesh:
    devices = jax.local_devices()
    return data_mesh(devices if batch_size % len(devices) == 0 else devices[:1])


@functools.lru_cache(maxsize=8)
def _compiled(detect: DetectFn, config: MaskRCNNConfig, mesh: Mesh) -> Callable[..., PaddedDetections]:
    in_specs = (EVERYWHERE, ROWS, ROWS)
    return jax.jit(jax.shard_map(functools.partial(detect, config), mesh=mesh, in_specs=in_specs, out_specs=ROWS))


def by_image(detections: PaddedDetections, batch: Mapping[str, np.ndarray]) -> Iterator[ImageDetections]:
    """The detections of a batch as those of its images; see `predict` for the keys of `batch`.

    `images` is only looked at for its shape, where there are maps.
    """
    found: PaddedDetections = jax.device_get(detections)
    for row in np.flatnonzero(batch["valid"]):
        kept = found.valid[row]
        height, width = (int(side) for side in batch["original_sizes"][row])
        size = batch["image_sizes"][row]
        resized_height, resized_width = size
        scale = np.array([width / resized_width, height / resized_height] * 2, np.float32)
        limit = np.array([width, height] * 2, np.float32)
        keypoints = None
        if found.keypoints is not None:
            keypoints = np.asarray(found.keypoints[row][kept], np.float32) * np.append(scale[:2], np.float32(1))
        yield ImageDetections(
            image_id=int(batch["image_ids"][row]),
            height=height,
            width=width,
            boxes=np.clip(np.asarray(found.boxes[row][kept], np.float32) * scale, 0, limit),
            scores=np.asarray(found.scores[row][kept], np.float32),
            classes=np.asarray(found.classes[row][kept], np.int32),
            masks=None if found.masks is None else np.asarray(found.masks[row][kept], np.float32),
            keypoints=keypoints,
            extras={name: _as_float32(np.asarray(values[row])[kept]) for name, values in found.extras.items()},
            maps={
                name: _as_float32(_without_padding(np.asarray(values[row]), size, batch["images"].shape[1:3]))
                for name, values in found.maps.items()
            },
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
