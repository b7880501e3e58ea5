"""The gain in AP and the cost in time of test-time augmentation, on a checkpoint's own validation images.

    python benchmarks/augmented.py --checkpoint runs/shapes

Each image is looked at as in evaluation, and then at several sizes and mirrored. Sizes are factors of the one that the
model evaluates at.
"""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mask_rcnn_jax.data import CocoConfig, CocoDataset
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import EvaluationConfig, score_results
from mask_rcnn_jax.evaluation.coco import Kind
from mask_rcnn_jax.inference import Detections, Model, Predictor, load_model, use_compile_cache
from mask_rcnn_jax.inference.augmented import AugmentationConfig, AugmentedPredictor


def measure(model: Model, dataset: CocoDataset, config: AugmentationConfig) -> dict[str, Any]:
    """AP by kind, and seconds an image after the first, without and with augmentation."""
    report = {}
    for name, predictor in (("plain", Predictor(model)), ("augmented", AugmentedPredictor(model, config))):
        paths = [record.path for record in dataset.records]
        list(predictor.stream(paths[:1]))  # compiles
        start = time.perf_counter()
        metrics = score(dataset, predictor.stream(paths))
        report[name] = {"AP": metrics, "seconds": (time.perf_counter() - start) / len(paths)}
    return report


def score(dataset: CocoDataset, predictions: Iterable[Detections]) -> dict[str, float]:
    results, kinds = [], list[Kind](["bbox"])
    for record, found in zip(dataset.records, predictions, strict=True):
        results += found.to_coco(record.image_id, dataset.categories)
        if found.rles is not None and "segm" not in kinds:
            kinds.append("segm")
        if found.keypoints is not None and dataset.keypoint_names and "keypoints" not in kinds:
            kinds.append("keypoints")
    return {kind: score_results(dataset, results, kind, EvaluationConfig())[f"{kind}/AP"] for kind in kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run's folder or a checkpoint")
    parser.add_argument("--data", help="a directory in COCO's layout (default: the checkpoint's own)")
    parser.add_argument("--split", help="which annotations (default: the validation split)")
    parser.add_argument("--images", type=int, metavar="N", help="the first N only")
    parser.add_argument("--scales", type=float, nargs="+", default=AugmentationConfig.scales, metavar="S")
    parser.add_argument("--no-flip", action="store_true", help="do not mirror")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    use_compile_cache()
    model = load_model(options.checkpoint)
    source = model.data.source if options.data is None else CocoConfig(options.data)
    dataset = source.load(options.split or source.val_split)
    if dataset.class_names != model.class_names:
        raise UserError(f"{dataset.annotation_file} has other categories than {options.checkpoint}")
    dataset = replace(dataset, records=list(dataset.records)[: options.images])
    config = AugmentationConfig(tuple(options.scales), not options.no_flip)
    report = measure(model, dataset, config)
    print(
        f"{len(dataset.records)} images, scales {config.scales}, {'mirrored too' if config.flip else 'not mirrored'}\n"
    )
    kinds = list(report["plain"]["AP"])
    print("| | " + " | ".join(f"{kind} AP" for kind in kinds) + " | s an image |\n|---|" + "---|" * (len(kinds) + 1))
    for name, row in report.items():
        print(f"| {name} | " + " | ".join(f"{row['AP'][kind]:.3f}" for kind in kinds) + f" | {row['seconds']:.2f} |")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
