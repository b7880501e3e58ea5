"""Pictures of training examples, drawn from the very arrays that the model would be given."""

import html
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from mask_rcnn_jax.data import CocoDataset, DataConfig, train_batches
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.media.image_files import opened_image
from mask_rcnn_jax.structures import Batch, TrainBatch
from mask_rcnn_jax.visualize.draw import Instances, draw_instances

_THUMBNAIL = 320  # pixels, longest side on the contact sheet
_COLUMNS = 4


def write_augmented(
    dataset: CocoDataset, config: DataConfig, outputs: OutputFolder, count: int = 16, seed: int = 0
) -> list[Path]:
    """Writes the first `count` examples of a run with `seed` and one image a step, a contact sheet, and `index.html`.

    Pictures of an earlier call that are not among them are removed.
    Masks are pasted from their grids, so a picture shows what is left of an annotation. Returns the files. Raises
    UserError for files of other origin in the way, before any is written.
    """
    directory = outputs.root
    sheet, index = directory / "contact_sheet.png", directory / "index.html"
    earlier = set(directory.glob("[0-9]*_*.png"))
    outputs.check([sheet, index, *earlier])
    paths, captions = [], []
    batches = train_batches(dataset, replace(config, num_workers=0), 1, seed, range(count))
    for step, batch in enumerate(batches):
        path = directory / f"{step:04}_{batch.image_ids[0]}.png"
        with outputs.replacing(path) as part:
            Image.fromarray(_draw(batch.inputs, dataset)).save(part, "PNG")
        paths.append(path)
        captions.append(_caption(batch))
    with outputs.replacing(sheet) as part:
        _contact_sheet(paths).save(part, "PNG")
    with outputs.replacing(index) as part:
        part.write_text(_page(paths, captions))
    outputs.remove_own(earlier.difference(paths))
    return [index, sheet, *paths]


def _draw(batch: Batch, dataset: CocoDataset) -> UInt8[np.ndarray, "H W 3"]:
    """The first image of a batch with its instances."""
    height, width = batch.image_sizes[0].tolist()
    image = np.clip(np.asarray(batch.images[0, :height, :width]) + 0.5, 0, 255).astype(np.uint8)
    truth = batch.ground_truth
    valid = truth.valid[0]
    boxes = np.asarray(truth.boxes[0, valid])
    masks = [_paste(grid, box, height, width) for grid, box in zip(truth.masks[0, valid], boxes, strict=True)]
    return draw_instances(
        image,
        Instances(
            boxes,
            np.asarray(truth.classes[0, valid]),
            masks,
            None,
            dataset.class_names,
            keypoints=None if truth.keypoints is None else np.asarray(truth.keypoints[0, valid]),
            skeleton=dataset.skeleton,
        ),
    )


def _paste(
    grid: UInt8[np.ndarray, "C C"], box: Float[np.ndarray, "4"], height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
    """The bitmap of a mask: bilinear between the centres of the grid's cells, as mask targets are, of at least half."""
    weights = []
    for low, high, length in ((box[1], box[3], height), (box[0], box[2], width)):
        cells = (np.arange(length) + 0.5 - low) / (high - low) * len(grid) - 0.5
        weights.append(np.maximum(1 - np.abs(cells[:, None] - np.arange(len(grid))), 0))
    return weights[0] @ (grid / 255) @ weights[1].T >= 0.5


def _caption(batch: TrainBatch) -> str:
    height, width = batch.inputs.image_sizes[0].tolist()
    count = batch.inputs.ground_truth.valid[0].sum()
    lines = [f"image {batch.image_ids[0]}", f"{width} x {height}", f"{count} instances"]
    if batch.dropped_instances[0]:
        lines.append(f"{batch.dropped_instances[0]} for which there were no slots")
    if batch.replaced_images[0]:
        lines.append(f"in place of {batch.replaced_images[0]} that could not be read")
    return ", ".join(lines)


def _contact_sheet(paths: Sequence[Path]) -> Image.Image:
    sheet = Image.new("RGB", (_COLUMNS * _THUMBNAIL, -(-len(paths) // _COLUMNS) * _THUMBNAIL), "white")
    for i, path in enumerate(paths):
        with opened_image(path) as picture:
            picture.thumbnail((_THUMBNAIL - 4, _THUMBNAIL - 4))
            sheet.paste(picture, (i % _COLUMNS * _THUMBNAIL, i // _COLUMNS * _THUMBNAIL))
    return sheet


def _page(paths: Sequence[Path], captions: Sequence[str]) -> str:
    figures = [
        f'<figure><a href="{html.escape(path.name)}"><img src="{html.escape(path.name)}" loading="lazy"></a>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for path, caption in zip(paths, captions, strict=True)
    ]
    style = "body{font:14px sans-serif} figure{display:inline-block;width:420px;margin:8px} img{width:100%}"
    head = f'<meta charset="utf-8"><title>Training examples</title><style>{style}</style>'
    return "\n".join(["<!doctype html>", head, *figures]) + "\n"
