"""LVIS's average precision (AP) and recall (AR), for images that were searched for some classes only.

Gupta et al. 2019, arXiv 1908.03195. As COCO's, but for: up to 300 detections an image, of all classes together;
detections of a class that is neither annotated in their image nor known to be absent do not count; detections that
match nothing do not count for a class whose instances in the image are not all annotated.

Metrics are named "segm/AP", AP50, AP75, APs, APm, APl (by area), APr, APc, APf (classes that are rare, common and
frequent), AR300, ARs, ARm, ARl, and the same with "bbox". All lie in 0..1; NaN where no ground truth decides.
"""

import contextlib
import copy
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mask_rcnn_jax.data import CocoDataset
from mask_rcnn_jax.evaluation.coco import Kind, Result, mean_of_defined, results_index, truth_index
from mask_rcnn_jax.evaluation.matching import SparseCOCOeval

_MAX_DETECTIONS = 300  # an image


def score_lvis(dataset: CocoDataset, results: Sequence[Result], kind: Kind) -> dict[str, float]:
    """The metrics of COCO results: of their "bbox" or their "segmentation"."""
    counted = list(_counted(dataset, results))
    # COCOeval reports its progress on standard output, which belongs to the command.
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = truth_index(dataset), results_index(dataset, counted, kind)
        evaluator = _FederatedCOCOeval(truth, found, kind)
        evaluator.not_exhaustive = {
            r.image_id: {dataset.categories[k] for k in r.federated.not_exhaustive.tolist()} if r.federated else set()
            for r in dataset.records
        }
        evaluator.params.maxDets = [_MAX_DETECTIONS]
        precision, recall = evaluator.by_class()
    return {f"{kind}/{name}": value for name, value in _summary(evaluator, precision, recall, dataset).items()}


def _counted(dataset: CocoDataset, results: Sequence[Result]) -> Iterator[Result]:
    """The best detections of each image whose class is known to be in it or not."""
    by_image: dict[int, list[Result]] = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    for record in dataset.records:
        known = {*record.classes.tolist(), *(record.federated.absent.tolist() if record.federated else ())}
        categories = {dataset.categories[k] for k in known}
        best = sorted(by_image[record.image_id], key=lambda result: -result["score"])[:_MAX_DETECTIONS]
        yield from (result for result in best if result["category_id"] in categories)


class _FederatedCOCOeval(SparseCOCOeval):
    """COCOeval one class at a time, over the images that have anything of it: of LVIS's pairs of image and class, 1 in
    1000 has.
    """

    not_exhaustive: dict[int, set[int]]  # image id -> category ids
    _prepare: Any  # reads annotations into `_gts` and `_dts`; of COCOeval

    def evaluateImg(self, imgId: Any, catId: Any, aRng: Any, maxDet: int) -> Any:
        """As COCOeval's, but that what is left over in a class not all annotated is ignored."""
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        if result is not None and catId in self.not_exhaustive[imgId]:
            result["dtIgnore"] = result["dtIgnore"] | (result["dtMatches"] == 0)
        return result

    def by_class(self) -> tuple[Float[np.ndarray, "T R K A"], Float[np.ndarray, "T K A"]]:
        """Precision by IoU threshold, recall, class and area, and recall; -1 where there is no ground truth."""
        params: Any = self.params
        categories, areas = params.catIds, params.areaRng
        precision = np.full((len(params.iouThrs), len(params.recThrs), len(categories), len(areas)), -1.0)
        recall = np.full((len(params.iouThrs), len(categories), len(areas)), -1.0)
        self._prepare()
        images: dict[int, set[int]] = defaultdict(set)
        for image, category in (*self._gts, *self._dts):
            images[category].add(image)
        for column, category in enumerate(categories):
            if not images[category]:
                continue
            params.imgIds, params.catIds = sorted(images[category]), [category]
            self.ious = {(image, category): self.computeIoU(image, category) for image in params.imgIds}
            self.evalImgs = [
                self.evaluateImg(image, category, area, _MAX_DETECTIONS) for area in areas for image in params.imgIds
            ]
            self._paramsEval = copy.copy(params)
            self.accumulate()
            precision[:, :, column], recall[:, column] = (
                self.eval["precision"][:, :, 0, :, 0],
                self.eval["recall"][:, 0, :, 0],
            )
        params.catIds = categories
        return precision, recall


def _summary(
    evaluator: SparseCOCOeval, precision: np.ndarray, recall: np.ndarray, dataset: CocoDataset
) -> dict[str, float]:
    thresholds = np.round(100 * evaluator.params.iouThrs)
    areas = {label[0]: i for i, label in enumerate(evaluator.params.areaRngLbl) if label != "all"}
    frequencies = np.array(dataset.frequencies)
    metrics = {"AP": mean_of_defined(precision[..., 0])}
    metrics |= {f"AP{t}": mean_of_defined(precision[thresholds == t, ..., 0]) for t in (50, 75)}
    metrics |= {f"AP{size}": mean_of_defined(precision[..., area]) for size, area in areas.items()}
    metrics |= {f"AP{f}": mean_of_defined(precision[:, :, frequencies == f, 0]) for f in ("r", "c", "f")}
    metrics |= {f"AR{_MAX_DETECTIONS}": mean_of_defined(recall[..., 0])}
    return metrics | {f"AR{size}": mean_of_defined(recall[..., area]) for size, area in areas.items()}
