"""Detections in the forms that other programs read: polygons, label images, cut-outs, rows of a table.

Where a model has no masks, boxes stand in for them. Shape letters: `n` instances, `H W` sides of the image.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.extras import require
from mask_rcnn_jax.inference.results.detections import Detections
from mask_rcnn_jax.inference.results.extra_values import json_value, table_cells, table_columns
from mask_rcnn_jax.rle import Window, cut_out

Polygon = list[Float[np.ndarray, "_ 2"]]  # closed rings of (x, y): the outline, then holes

_MOST_LABELS = 65535
COLUMNS = ("image", "instance", "class", "class_id", "score", "x1", "y1", "x2", "y2", "area")


def mask_windows(found: Detections) -> Iterator[tuple[Bool[np.ndarray, "h w"], Window]]:
    """Each instance's mask where it has pixels, and where that is."""
    return (mask_window(found, i) for i in range(len(found)))


def mask_window(found: Detections, i: int) -> tuple[Bool[np.ndarray, "h w"], Window]:
    """The mask of instance `i` where it has pixels, and where that is."""
    if found.rles is None:
        low, high = np.floor(found.boxes[i, :2]), np.ceil(found.boxes[i, 2:])
        x1, y1, x2, y2 = (int(side) for side in np.concatenate([low, high]))
        return np.ones((y2 - y1, x2 - x1), bool), (x1, y1, x2, y2)
    return cut_out(found.rles[i])


def polygons(mask: Bool[np.ndarray, "h w"], left: int = 0, top: int = 0) -> list[Polygon]:
    """The outlines of a mask whose corner is at (left, top), in pixels of the image, one for each connected part.

    A ring runs midway between the centres of pixels inside and outside: exactly the mask's pixels have their centre in
    it.
    """
    require("outlines", "an outline")
    import contourpy

    padded = np.pad(mask, 1).astype(np.float32)
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    filled: Any = generator.filled(0.5, np.inf)  # its type depends on `fill_type`
    points, offsets = filled
    corner = np.array([left - 0.5, top - 0.5])  # contourpy counts from the centre of the padding's first pixel
    parts = []
    for part, starts in zip(points, offsets, strict=True):
        rings = [part[start:end] + corner for start, end in itertools.pairwise(starts)]
        parts.append(rings)
    return parts


def to_geojson(found: Detections) -> dict[str, Any]:
    """A GeoJSON feature collection, a feature for each instance that has pixels; y runs downwards, as in QuPath."""
    features = []
    for i, (mask, window) in enumerate(mask_windows(found)):
        parts = [[ring.round(2).tolist() for ring in part] for part in polygons(mask, *window[:2])]
        if not parts:
            continue
        geometry = {"type": "Polygon", "coordinates": parts[0]}
        if len(parts) > 1:
            geometry = {"type": "MultiPolygon", "coordinates": parts}
        name = found.names[i]
        properties = {
            "instance": i + 1,
            "score": round(float(found.scores[i]), 4),
            "class": name,
            "classification": {"name": name},  # where QuPath looks for it
        }
        properties |= {name: json_value(values[i, ...]) for name, values in found.extras.items() if values.ndim == 1}
        features.append({"type": "Feature", "id": str(i + 1), "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def label_image(found: Detections) -> UInt16[np.ndarray, "H W"]:
    """The number of the instance, from 1, at each pixel, 0 where there is none; the better score where they overlap."""
    if len(found) > _MOST_LABELS:
        raise UserError(f"{len(found)} instances do not fit a 16-bit label image; raise the score threshold")
    labels = np.zeros((found.height, found.width), np.uint16)
    for i in reversed(range(len(found))):
        mask, (x1, y1, x2, y2) = mask_window(found, i)
        labels[y1:y2, x1:x2][mask] = i + 1
    return labels


def cutouts(image: UInt8[np.ndarray, "H W 3"], found: Detections) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 4"]]]:
    """The number of each instance that has pixels, and what the image shows of it, transparent around its mask."""
    for i, (mask, (x1, y1, x2, y2)) in enumerate(mask_windows(found)):
        if mask.size:
            yield i, np.dstack([image[y1:y2, x1:x2], mask.astype(np.uint8) * 255])


def column_names(found: Detections) -> list[str]:
    """The columns of `table_rows`. Raises UserError where two would have one name."""
    count = 0 if found.keypoints is None else found.keypoints.shape[1]
    points = [f"keypoint{k}_{part}" for k in range(1, count + 1) for part in ("x", "y", "score")]
    return [*COLUMNS, *points, *table_columns(found.extras, [*COLUMNS, *points])]


def table_rows(found: Detections) -> Iterator[list[Any]]:
    """The `COLUMNS` of each instance, then the (x, y, score) of each keypoint, then the extras that fit a table; areas
    are pixels of the mask.
    """
    for i, (mask, _) in enumerate(mask_windows(found)):
        box = [round(value, 2) for value in found.boxes[i].tolist()]
        row = [found.path, i + 1, found.names[i], int(found.classes[i]), round(float(found.scores[i]), 4), *box]
        keypoints = [] if found.keypoints is None else found.keypoints[i].ravel().tolist()
        points = (round(value, 3) for value in keypoints)
        yield [*row, int(mask.sum()), *points, *table_cells(found.extras, i)]
