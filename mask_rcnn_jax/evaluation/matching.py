"""COCOeval with a faster matching of detections to ground truth.

Shape letters: `T` IoU thresholds, `D` detections and `G` ground-truth instances of one image and class.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from pycocotools.cocoeval import COCOeval


class SparseCOCOeval(COCOeval):
    """Same results as `COCOeval` of boxes, masks or keypoints, by looking only at pairs above the lowest IoU threshold.

    COCOeval's loops visit every pair at every threshold, which takes most of an evaluation on images with hundreds of
    instances, where nearly all pairs are apart.
    """

    _gts: Any  # annotations by image and category; set by COCOeval
    _dts: Any

    def evaluateImg(self, imgId: Any, catId: Any, aRng: Any, maxDet: int) -> Any:
        """COCOeval's record of one image and class for instances of an area in `aRng`; None where there are none."""
        truth, detections = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truth and not detections:
            return None

        def outside(instance: dict[str, Any]) -> bool:
            return instance["area"] < aRng[0] or instance["area"] > aRng[1]

        ignored = np.array([bool(g["ignore"]) or outside(g) for g in truth], bool)
        order = np.argsort(ignored, kind="stable")  # ignored ones last
        truth, ignored = [truth[i] for i in order], ignored[order]
        best = np.argsort([-d["score"] for d in detections], kind="stable")[:maxDet]
        detections = [detections[i] for i in best]
        ious = np.reshape(self.ious[imgId, catId], (len(detections), len(truth)))[:, order]
        crowd = np.array([bool(g["iscrowd"]) for g in truth], bool)

        thresholds = np.minimum(self.params.iouThrs, 1 - 1e-10)
        matches = match(ious, thresholds, ignored, crowd)
        truth_ids = np.array([g["id"] for g in truth] + [0])  # the last for "not matched", which is -1
        matched = matches >= 0
        unmatched_outside = ~matched & np.array([outside(d) for d in detections], bool)
        return {
            "image_id": imgId,
            "category_id": catId,
            "aRng": aRng,
            "maxDet": maxDet,
            "dtIds": [d["id"] for d in detections],
            "gtIds": [g["id"] for g in truth],
            "dtMatches": truth_ids[matches].astype(np.float64),
            "dtScores": [d["score"] for d in detections],
            "gtIgnore": ignored.astype(np.int64),
            "dtIgnore": (matched & np.append(ignored, False)[matches]) | unmatched_outside,
        }


def match(
    ious: Float[np.ndarray, "D G"],
    thresholds: Float[np.ndarray, " T"],
    ignored: Bool[np.ndarray, " G"],
    crowd: Bool[np.ndarray, " G"],
) -> np.ndarray:
    """[T, D]: the instance that each detection matches at each threshold, or -1.

    In the order of the detections, each takes the instance of highest IoU that is free, an ignored one only where no
    other will do; crowds stay free. Of equal IoUs the last counts.
    """
    matches = np.full((len(thresholds), len(ious)), -1)
    if not ious.size:
        return matches
    candidates: dict[int, list[tuple[int, float]]] = {}
    rows, columns = np.nonzero(ious >= thresholds.min())
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        candidates.setdefault(row, []).append((column, float(ious[row, column])))
    for threshold, match in zip(thresholds.tolist(), matches, strict=True):
        taken: set[int] = set()
        for detection, pairs in candidates.items():
            best, best_iou = -1, threshold
            for instance, iou in pairs:
                if instance in taken and not crowd[instance]:
                    continue
                if best >= 0 and not ignored[best] and ignored[instance]:
                    break
                if iou >= best_iou:
                    best, best_iou = instance, iou
            if best >= 0:
                match[detection] = best
                taken.add(best)
    return matches
