"""The cost of tiling in AP: pieces side by side in one mosaic, found through tiles, beside each found by itself.

    python benchmarks/tiling.py --checkpoint runs/shapes

For a checkpoint that was trained on synthetic shapes the pieces share one background and hold whole shapes, so that
their seams cannot be seen; with `--data`, a directory in COCO's layout, they are its validation images, and the seams
are for the model to ignore. Both results are laid out in the mosaic and compared with the same truth by the same
metric, as one image without a limit of detections. Tiles have the side of a piece unless `--tile` says otherwise, so
that the model sees things at their size.
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data import CocoConfig, CocoDataset, Record, ShapesConfig, read_image, to_rle
from mask_rcnn_jax.data.sources.shapes import CLASS_NAMES, draw_shapes, texture
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import EvaluationConfig, score_results
from mask_rcnn_jax.evaluation.coco import Kind
from mask_rcnn_jax.inference import Detections, Model, Predictor, load_model, use_compile_cache
from mask_rcnn_jax.inference.stitching import stitch
from mask_rcnn_jax.inference.tiling import TiledPredictor, TilingConfig

_NO_LIMIT = EvaluationConfig(max_detections=(1_000_000,))


class Piece(NamedTuple):
    image: UInt8[np.ndarray, "H W 3"]
    truth: Detections


def shape_pieces(config: ShapesConfig, count: int) -> list[Piece]:
    """Squares cut from one background, each with shapes that do not touch its border."""
    rng, side = np.random.default_rng([config.seed, count]), config.image_size
    columns = math.ceil(math.sqrt(count))
    backdrop = texture(rng, columns * side, rng.uniform(20, 235, 3)).pixels
    pieces = []
    for row, column in itertools.islice(itertools.product(range(columns), repeat=2), count):
        patch = backdrop[row * side : (row + 1) * side, column * side : (column + 1) * side]
        while True:
            image, annotations, *_ = draw_shapes(config, rng, patch)
            x, y, w, h = np.array([annotation["bbox"] for annotation in annotations]).T
            if min(x.min(), y.min()) > 1 and max((x + w).max(), (y + h).max()) < side - 1:
                break
        scored = [annotation | {"score": 1.0} for annotation in annotations]
        pieces.append(Piece(image, Detections.from_coco(scored, side, side, CLASS_NAMES)))
    return pieces


def data_pieces(root: str, class_names: tuple[str, ...], count: int) -> list[Piece]:
    """The first images of a dataset's validation split, without crowds."""
    dataset = CocoConfig(root).load(CocoConfig.val_split)
    if dataset.class_names != class_names:
        raise UserError(f"{dataset.annotation_file} has other categories than the checkpoint")
    return [Piece(read_image(record.path), truth(record, class_names)) for record in list(dataset.records)[:count]]


def cells(pieces: list[Piece]) -> Int[np.ndarray, "n 4"]:
    """Return the places of pieces (x1, y1, x2, y2): on a grid as square as can be, each at its cell's corner."""
    sides = np.array([piece.image.shape[1::-1] for piece in pieces])
    width, height = sides.max(axis=0)
    columns = math.ceil(math.sqrt(len(pieces) * height / width))
    row, column = np.divmod(np.arange(len(pieces)), columns)
    corners = np.stack([column * width, row * height], axis=1)
    return np.concatenate([corners, corners + sides], axis=1)


def mosaic(pieces: list[Piece], places: Int[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "H W 3"]:
    x2, y2 = places[:, 2:].max(axis=0)
    image = np.zeros((y2, x2, 3), np.uint8)
    for piece, (left, top, right, bottom) in zip(pieces, places.tolist(), strict=True):
        image[top:bottom, left:right] = piece.image
    return image


def truth(record: Record, class_names: tuple[str, ...]) -> Detections:
    """The annotations that are no crowds, as if they were detected."""
    chosen = np.flatnonzero(~record.iscrowd)
    rles: list[Any] = [to_rle(record.segmentations[i], record.height, record.width) for i in chosen]
    return Detections(
        height=record.height,
        width=record.width,
        boxes=record.boxes[chosen],
        scores=np.ones(len(chosen), np.float32),
        classes=record.classes[chosen].astype(np.int32),
        class_names=class_names,
        rles=tuple({"size": rle["size"], "counts": as_text(rle["counts"])} for rle in rles),
    )


def as_text(counts: str | bytes) -> str:
    return counts if isinstance(counts, str) else counts.decode()


def as_dataset(whole: Detections) -> CocoDataset:
    """One image with these instances."""
    rles: list[Any] = [rle | {"counts": rle["counts"].encode()} for rle in whole.rles or ()]
    record = Record(
        image_id=1,
        path="mosaic",
        height=whole.height,
        width=whole.width,
        boxes=whole.boxes,
        classes=whole.classes,
        segmentations=rles,
        iscrowd=np.zeros(len(whole), bool),
        areas=np.array([coco_mask.area(rle) for rle in rles], np.float64),
        annotation_ids=np.arange(1, len(whole) + 1),
    )
    categories = tuple(range(1, len(whole.class_names) + 1))
    return CocoDataset(Path("mosaic"), [record], categories, whole.class_names)


def measure(model: Model, pieces: list[Piece], tile: int | None, overlap: int | None) -> dict[str, Any]:
    """AP of boxes and masks of pieces and of the tiled mosaic, and the seconds of each."""
    places = cells(pieces)
    image = mosaic(pieces, places)
    size = (image.shape[0], image.shape[1])
    predictor = Predictor(model)
    side = tile or max(max(piece.image.shape[:2]) for piece in pieces)
    config = TilingConfig(side, overlap or side * 3 // 4)
    predictor(pieces[0].image)  # compiles

    start = time.perf_counter()
    alone = stitch(places, list(predictor.stream(piece.image for piece in pieces)), size)
    between = time.perf_counter()
    tiled = TiledPredictor(predictor, config)(image)
    seconds = {"pieces": between - start, "tiled": time.perf_counter() - between}

    whole = stitch(places, [piece.truth for piece in pieces], size)
    metrics = {}
    for name, found in (("pieces", alone), ("tiled", tiled)):
        kinds: tuple[Kind, ...] = ("bbox", "segm") if found.rles is not None else ("bbox",)
        scores = [score_results(as_dataset(whole), found.to_coco(1), kind, _NO_LIMIT) for kind in kinds]
        metrics[name] = {kind: of_kind[f"{kind}/AP"] for kind, of_kind in zip(kinds, scores, strict=True)}
    return {
        "pieces": len(pieces),
        "mosaic": list(size),
        "tile": config.tile,
        "overlap": config.pixels_shared,
        "instances": {"truth": len(whole), "pieces": len(alone), "tiled": len(tiled)},
        "AP": metrics,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run's folder or a checkpoint")
    parser.add_argument("--data", help="a directory in COCO's layout (default: synthetic shapes)")
    parser.add_argument("--pieces", type=int, default=100, metavar="N", help="images in the mosaic (default: 100)")
    parser.add_argument("--tile", type=int, help="side of a tile, pixels (default: the largest side of a piece)")
    parser.add_argument("--overlap", type=int, help="pixels (default: three quarters of a tile)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    use_compile_cache()
    model = load_model(options.checkpoint)
    source = model.data.source
    if options.data is not None:
        pieces = data_pieces(options.data, model.class_names, options.pieces)
    elif isinstance(source, ShapesConfig):
        pieces = shape_pieces(source, options.pieces)
    else:
        parser.error("this checkpoint was not trained on synthetic shapes: give --data")
    report = measure(model, pieces, options.tile, options.overlap)
    height, width = report["mosaic"]
    print(f"{report['pieces']} pieces, {width} x {height}, tiles of {report['tile']} that share {report['overlap']}\n")
    print("| | box AP | mask AP | instances | s |\n|---|---|---|---|---|")
    for name, metrics in report["AP"].items():
        mask = f"{metrics['segm']:.3f}" if "segm" in metrics else ""
        seconds = report["seconds"][name]
        print(f"| {name} | {metrics['bbox']:.3f} | {mask} | {report['instances'][name]} | {seconds:.1f} |")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
