"""Detections of one image, and their interchange with COCO results and the library `supervision`.

Shape letters: `n` instances, `H W` sides of the image, `J` keypoints of an instance, `h w` sides of a map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from mask_rcnn_jax.data import to_rle
from mask_rcnn_jax.data.records.entries import shown
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.extras import require
from mask_rcnn_jax.inference.results.extra_values import as_numbers, extras_of, json_value
from mask_rcnn_jax.inference.results.foreign import check_result
from mask_rcnn_jax.rle import RLE, as_text, decode_bitmap, encode_bitmap
from mask_rcnn_jax.value_names import check_value_names, is_free

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class Detections:
    """Instances found in one image, best score first, in pixels of the original image as displayed."""

    height: int
    width: int
    boxes: Float[np.ndarray, "n 4"]  # float32 (x1, y1, x2, y2)
    scores: Float[np.ndarray, " n"]  # float32
    classes: Int[np.ndarray, " n"]  # int32, index into `class_names`
    class_names: tuple[str, ...]
    rles: tuple[RLE, ...] | None  # masks of the whole image, as text; None for a model without masks
    # (x, y, score), COCO's pixel index + 0.5; None for a model without keypoints
    keypoints: Float[np.ndarray, "n J 3"] | None = None
    path: str | None = None  # the image's file, where it came from one
    # What heads of others say, by name: of each instance, and of the image, on a grid of equal cells of which the last
    # of a row or column may reach beyond it.
    extras: Mapping[str, Shaped[np.ndarray, "n ..."]] = field(default_factory=dict)
    maps: Mapping[str, Shaped[np.ndarray, "h w ..."]] = field(default_factory=dict)
    # What each pixel shows: 0 a thing, 1.. a kind of stuff; None for a model without a semantic head
    stuff: UInt8[np.ndarray, "H W"] | None = None

    def __post_init__(self) -> None:
        check_value_names([*self.extras, *self.maps])

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of each instance."""
        return [self.class_names[k] for k in self.classes.tolist()]

    @property
    def masks(self) -> Bool[np.ndarray, "n H W"] | None:
        """The masks as bitmaps, decoded at each call; None for a model without masks."""
        if self.rles is None:
            return None
        bitmaps = np.zeros((len(self), self.height, self.width), bool)
        for bitmap, rle in zip(bitmaps, self.rles, strict=True):
            bitmap[:] = decode_bitmap(rle)
        return bitmaps

    def take(self, which: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "Detections":
        """The instances that `which`, their indices or a flag for each, names, in its order."""
        indices = np.arange(len(self))[which]
        return replace(
            self,
            boxes=self.boxes[indices],
            scores=self.scores[indices],
            classes=self.classes[indices],
            rles=None if self.rles is None else tuple(self.rles[i] for i in indices.tolist()),
            keypoints=None if self.keypoints is None else self.keypoints[indices],
            extras={name: values[indices] for name, values in self.extras.items()},
        )

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Entries of a COCO results file, `extras` among their keys, with null for what is not finite.

        `category_ids` are those of the classes 0..K-1, from 1 unless given.
        """
        ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
        results: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": ids[k], "bbox": coco_box(box), "score": score}
            for k, box, score in zip(self.classes.tolist(), self.boxes.tolist(), self.scores.tolist(), strict=True)
        ]
        if self.rles is not None:
            for result, rle in zip(results, self.rles, strict=True):
                result["segmentation"] = rle
        if self.keypoints is not None:
            for result, keypoints in zip(results, self.keypoints, strict=True):
                result["keypoints"] = coco_keypoints(keypoints)
        for name, values in self.extras.items():
            for result, value in zip(results, json_value(values), strict=True):
                result[name] = value
        return results

    @classmethod
    def from_coco(
        cls,
        results: Sequence[Mapping[str, Any]],
        height: int,
        width: int,
        class_names: Sequence[str],
        category_ids: Sequence[int] | None = None,
        path: str | None = None,
    ) -> "Detections":
        """Entries of a COCO results file that belong to one image; segmentations are RLEs or polygons.

        Keys that are not COCO's become `extras` where all entries have them, with numbers or lists of equal lengths;
        null is NaN. Others are left out.

        Raises `UserError` where a category id is not among `category_ids` (from 1 unless given), where some entries
        have a mask or keypoints and others none, and for scores, boxes, keypoints and masks that are none.
        """
        ids = list(range(1, len(class_names) + 1) if category_ids is None else category_ids)
        for index, result in enumerate(results):
            try:
                check_result(result, ids)
                if "bbox" not in result:
                    raise ValueError("has no 'bbox'")
            except ValueError as error:
                raise UserError(f"results[{index}] {error}; correct or remove it") from None
        ordered = sorted(results, key=lambda result: -result["score"])
        corners = np.array([result["bbox"] for result in ordered], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        rles = keypoints = None
        if _all_have(ordered, "segmentation") or not ordered:
            try:
                rles = tuple(as_text(to_rle(_segmentation(r), height, width)) for r in ordered)
            except ValueError as error:
                raise UserError(f"a result has a segmentation that cannot be used: {error}; correct it") from None
        if _all_have(ordered, "keypoints"):
            if len({len(result["keypoints"]) for result in ordered}) > 1:
                raise UserError("results have different numbers of keypoints; give all of an image as many")
            flat = np.array([result["keypoints"] for result in ordered], np.float64)
            keypoints = (flat.reshape(len(ordered), -1, 3) + np.array([0.5, 0.5, 0])).astype(np.float32)
        return cls(
            height=height,
            width=width,
            boxes=corners.astype(np.float32),
            scores=np.array([result["score"] for result in ordered], np.float32),
            classes=np.array([ids.index(result["category_id"]) for result in ordered], np.int32),
            class_names=tuple(class_names),
            rles=rles,
            keypoints=keypoints,
            path=path,
            extras=extras_of(ordered),
        )

    def to_supervision(self) -> "supervision.Detections":
        """The same as `supervision.Detections`, class names, keypoints and `extras` in its `data`.

        Masks become bitmaps, `n` of the image's size. Raises `UserError` where the library is not installed.
        """
        data: dict[str, Any] = {"class_name": np.array(self.names, dtype=str), **self.extras}
        if self.keypoints is not None:
            data["keypoints"] = self.keypoints
        return _supervision().Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.classes.astype(int),
            data=data,
        )

    @classmethod
    def from_supervision(
        cls,
        found: "supervision.Detections",
        height: int,
        width: int,
        class_names: Sequence[str],
        path: str | None = None,
    ) -> "Detections":
        """Detections of the library `supervision` for an image of `height` x `width` pixels.

        Without confidences, scores are 1; without class ids, all instances are of class 0. Of its `data`, numbers
        become `extras`.
        """
        count = len(found.xyxy)
        scores = np.ones(count) if found.confidence is None else found.confidence
        classes = np.zeros(count) if found.class_id is None else found.class_id
        rles = None
        if found.mask is not None:
            rles = tuple(as_text(encode_bitmap(bitmap)) for bitmap in np.asarray(found.mask, bool))
        keypoints = found.data.get("keypoints")
        values = {name: as_numbers(rows) for name, rows in found.data.items() if is_free(name)}
        detections = cls(
            height=height,
            width=width,
            boxes=np.asarray(found.xyxy, np.float32),
            scores=np.asarray(scores, np.float32),
            classes=np.asarray(classes, np.int32),
            class_names=tuple(class_names),
            rles=rles,
            keypoints=None if keypoints is None else np.asarray(keypoints, np.float32),
            path=path,
            extras={name: array for name, array in values.items() if array is not None and len(array) == count},
        )
        return detections.take(np.argsort(-detections.scores, kind="stable"))


def coco_box(box: Sequence[float]) -> list[float]:
    """(x1, y1, x2, y2) as COCO's (x, y, width, height)."""
    x1, y1, x2, y2 = box
    # Annotations and files have few decimals. What float32 made of them is undone: an IoU exactly on a threshold has to
    # stay there, or COCO's published values are missed.
    return [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]


def coco_keypoints(keypoints: Float[np.ndarray, "J 3"]) -> list[float]:
    """COCO's (x1, y1, v1, x2, ...), where x and y are pixel indices."""
    return [value for x, y, v in keypoints.tolist() for value in (round(x - 0.5, 3), round(y - 0.5, 3), v)]


def _all_have(results: Sequence[Mapping[str, Any]], key: str) -> bool:
    count = sum(key in result for result in results)
    if 0 < count < len(results):
        raise UserError(f"{count} of {len(results)} results have a '{key}'; give it to all of an image, or to none")
    return count > 0


def _segmentation(result: Mapping[str, Any]) -> Any:
    """A result's RLE or polygons; ValueError where it has neither."""
    segmentation = result["segmentation"]
    if not isinstance(segmentation, Mapping | list | tuple):
        raise ValueError(f"it is {shown(segmentation)}")
    return dict(segmentation) if isinstance(segmentation, Mapping) else segmentation


def _supervision() -> Any:
    require("supervision", "a Detections of supervision")
    import supervision

    return supervision
