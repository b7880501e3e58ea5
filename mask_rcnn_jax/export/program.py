"""The whole way from an image's bytes to detections in its pixels, as one function to be exported.

Shape letters: `B` images, `H W` sides of the input, `D` detection slots, `M` side of a predicted mask, `J` keypoints,
`h w` sides of a map.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.export.resize import Preprocessing, largest_exact_side, preprocess
from mask_rcnn_jax.models import MaskRCNNConfig, Variables, detect
from mask_rcnn_jax.models.pooler import Pool, pool
from mask_rcnn_jax.ops import paste_masks
from mask_rcnn_jax.structures import PaddedDetections
from mask_rcnn_jax.value_names import CELLS, check_value_names

Program = Callable[[Variables, UInt8[Array, "B H W 3"], Int[Array, "B 2"]], dict[str, Array]]


@dataclass(frozen=True)
class ExportSettings:
    """Inputs and outputs of an exported file, beyond what the checkpoint says.

    Raises UserError for an input whose resizing would not be exact.
    """

    input_size: tuple[int, int]  # (height, width), pixels: the largest image
    preprocessing: Preprocessing
    batch: int | None = 1  # images a call; None: any number (StableHLO)
    paste_masks: bool = False  # bitmaps of the input's size instead of probabilities inside the boxes

    def __post_init__(self) -> None:
        height, width = self.input_size
        largest = largest_exact_side(self.preprocessing)
        if largest is not None and max(height, width) > largest:
            raise UserError(
                f"--input {height} {width}: the model's images are so much smaller that sides above {largest} pixels"
                " cannot be resized exactly; give a smaller --input or a larger --canvas"
            )


@dataclass(frozen=True)
class Exportable:
    """A trained model, and how it is to be exported."""

    config: MaskRCNNConfig
    variables: Variables
    class_names: tuple[str, ...]
    settings: ExportSettings
    licence: str = ""  # of imported weights, if something is known of it


def program(config: MaskRCNNConfig, settings: ExportSettings, pool: Pool = pool) -> Program:
    """A function of variables, images and their (height, width) in the input; it gives padded arrays by name.

    `boxes` [B, D, 4] (x1, y1, x2, y2) and `keypoints` [B, D, J, 3] (x, y, score) are in pixels of the input, `masks`
    are probabilities [B, D, M, M] inside the boxes or bitmaps [B, D, H, W], `scores`, `classes` and `valid` are [B, D].
    Best score first; rows that are not `valid` are zeros. Only a model that has them gives `masks` and `keypoints`.

    What heads of others find has their names: values of instances [B, D, ...], and maps [B, h, w, ...], of which
    `NAME_cells` [B, 2] says how many (rows, columns) are not of padding alone; so are the logits of kinds of stuff,
    `stuff` [B, h, w, S]. Raises UserError where a name is taken.
    """

    def run(variables: Variables, images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"]) -> dict[str, Array]:
        sizes = jnp.clip(sizes, 1, jnp.array(settings.input_size, jnp.int32))
        resized, resized_sizes = preprocess(settings.preprocessing, images, sizes)
        found = detect(config, variables, resized, resized_sizes, pool)
        scale = (sizes.astype(jnp.float32) / resized_sizes.astype(jnp.float32))[:, None, ::-1]
        limit = sizes.astype(jnp.float32)[:, None, ::-1]
        boxes = jnp.clip(found.boxes * jnp.tile(scale, 2), 0, jnp.tile(limit, 2))
        outputs = {"boxes": boxes, "scores": found.scores, "classes": found.classes, "valid": found.valid}
        if found.masks is not None:
            outputs["masks"] = _pasted(config, settings, found.masks, boxes) if settings.paste_masks else found.masks
        if found.keypoints is not None:
            ones = jnp.ones_like(scale[..., :1])
            outputs["keypoints"] = found.keypoints * jnp.concatenate([scale, ones], axis=-1)[:, :, None]
        return outputs | _own_values(found, resized_sizes, (resized.shape[1], resized.shape[2]))

    return run


def _own_values(found: PaddedDetections, sizes: Int[Array, "B 2"], padded_size: tuple[int, int]) -> dict[str, Array]:
    """Name what heads of others found, and of each map the number of cells that an image of `sizes` touches."""
    check_value_names([*found.extras, *found.maps])
    maps = found.maps if found.stuff is None else found.maps | {"stuff": found.stuff}
    values = found.extras | maps
    # A model's bfloat16 is nothing to most programs that read the file.
    values = {name: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for name, x in values.items()}
    padded = jnp.array(padded_size, sizes.dtype)
    for name, array in maps.items():
        grid = jnp.array(array.shape[1:3], sizes.dtype)
        # Of positive numbers, this division rounds up.
        values[f"{name}{CELLS}"] = jax.lax.div(grid * sizes + padded - 1, jnp.broadcast_to(padded, sizes.shape))
    return values


def metadata(exportable: Exportable) -> dict[str, Any]:
    """Return the file's description of itself, as JSON values."""
    settings = exportable.settings
    return {
        "class_names": list(exportable.class_names),
        "input_size": list(settings.input_size),
        "batch": settings.batch,
        "masks": "pasted" if settings.paste_masks else "probabilities",
        "preprocessing": asdict(settings.preprocessing),
        "jax": jax.__version__,
    } | ({"licence": exportable.licence} if exportable.licence else {})


def abstract_inputs(settings: ExportSettings, batch: Any) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of a program's images and sizes."""
    height, width = settings.input_size
    return jax.ShapeDtypeStruct((batch, height, width, 3), np.uint8), jax.ShapeDtypeStruct((batch, 2), np.int32)


def _pasted(
    config: MaskRCNNConfig, settings: ExportSettings, masks: Float[Array, "B D M M"], boxes: Float[Array, "B D 4"]
) -> UInt8[Array, "B D H W"]:
    def paste(masks: Float[Array, "D M M"], boxes: Float[Array, "D 4"]) -> UInt8[Array, "D H W"]:
        return paste_masks(masks, boxes, settings.input_size, config.paste).astype(jnp.uint8)

    return jax.vmap(paste)(masks, boxes)
