"""Each stage of torchvision's detectors beside this project's, given what the reference gave the stage before.

Shape letters: `B` images, `P` proposals or detections of an image, padded to as many in every image of the batch.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection import _utils
from torchvision.models.detection import rpn as rpn_module
from torchvision.ops import box_iou, nms

from mask_rcnn_jax import data, models, ops
from mask_rcnn_jax.inference import encode_masks, predict
from mask_rcnn_jax.models import rcnn
from mask_rcnn_jax.models.heads import box as box_head
from mask_rcnn_jax.models.pooler import PoolerConfig, pool
from mask_rcnn_jax.models.proposals import rpn
from mask_rcnn_jax.ops import boxes as box_ops
from mask_rcnn_jax.structures import EvalBatch, Proposals
from tests import probabilities
from tests.conformance.rows import (
    Boxes,
    Row,
    box_rows,
    largest_relative,
    mask_rows,
    masks_iou,
    match_boxes,
    mean_mask_row,
    relative,
)
from tests.conformance.sources import Case, Source

LEVELS = ("p2", "p3", "p4", "p5", "p6")


def input_rows(case: Case) -> list[Row]:
    """Resizing, normalisation and padding of the original images."""
    batch = eval_batch(case)
    ours = rcnn.normalize(case.config, jnp.asarray(batch.images), jnp.asarray(batch.image_sizes))
    return [_tensor(case, "input", "resized, normalised and padded images", relative(ours, nhwc(_input(case).tensors)))]


def feature_rows(case: Case) -> list[Row]:
    backbone = jax.jit(lambda variables, x: models.networks(case.config, variables).backbone(x))
    ours, reference = backbone(case.variables, nhwc(_input(case).tensors)), features(case)
    return [_tensor(case, "backbone", f"features {name}", relative(ours[name], reference[name])) for name in reference]


def rpn_rows(case: Case) -> list[Row]:
    head = jax.jit(lambda variables, x: models.networks(case.config, variables).rpn(x))
    logits, deltas = head(case.variables, list(features(case).values()))
    reference_logits, reference_deltas = rpn_outputs(case)
    return [
        _tensor(case, "RPN head", "objectness logits", largest_relative(zip(logits, reference_logits, strict=True))),
        _tensor(case, "RPN head", "anchor deltas", largest_relative(zip(deltas, reference_deltas, strict=True))),
    ]


def anchor_rows(case: Case) -> list[Row]:
    """Anchors, their matching with the annotations, and the coding of those as deltas."""
    ours, reference = np.concatenate(anchors(case)), reference_anchors(case)
    coder, matcher = _utils.BoxCoder(BOX_WEIGHTS), _utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
    matching, coding = [], []
    for record, size in zip(case.records, _input(case).image_sizes, strict=True):
        gt_boxes = torch.from_numpy(record.boxes * np.float32([size[1] / record.width, size[0] / record.height] * 2))
        expected = matcher(box_iou(gt_boxes, reference)).numpy()
        matching.append(np.mean(_matches(reference.numpy(), gt_boxes.numpy()) != expected))
        matched = gt_boxes[expected.clip(0)]
        deltas = coder.encode_single(matched, reference)
        decoded = coder.decode_single(deltas, reference)
        coding.append((_encode(matched.numpy(), reference.numpy()), deltas.numpy()))
        coding.append((_decode(deltas.numpy(), reference.numpy()), decoded.numpy()))
    name = case.name
    return [
        Row(name, "anchors", "anchors", relative(ours, reference.numpy()), 1e-5, "relative"),
        Row(name, "anchors", "anchors matched otherwise", float(np.max(matching)), 0.0, "of all"),
        Row(name, "anchors", "box coding", largest_relative(coding), 1e-5, "relative"),
    ]


def proposal_rows(case: Case) -> list[Row]:
    """Proposals in testing and in training from the reference's logits and deltas, and NMS alone."""
    rows = box_rows(case.name, "proposals", _proposals(case, train=False))
    rows += box_rows(case.name, "training proposals", _proposals(case, train=True))
    flipped = []
    for boxes, scores in zip(*case.trace.stages["proposals"], strict=True):
        # The levels' own NMS is over: at .5 and over all levels most of these boxes fall.
        expected = nms(boxes, scores, 0.5).numpy()
        kept = _nms(jnp.asarray(boxes), jnp.asarray(scores), jnp.ones(len(boxes), bool), 0.5, len(boxes))
        found = np.asarray(kept.indices)[np.asarray(kept.valid)]
        flipped.append(len(np.setxor1d(found, expected)) / len(boxes))
    return [*rows, Row(case.name, "proposals", "boxes that NMS treats otherwise", max(flipped), 0.0, "of all")]


def pooling_rows(case: Case) -> list[Row]:
    rows = [_pooling(case, case.config.box_head.pooler, "box", case.trace.stages["proposals"][0])]
    detected = [image["boxes"] for image in case.trace.stages["heads"]]
    for name, head in (("mask", case.config.mask_head), ("keypoint", case.config.keypoint_head)):
        if head is not None:
            rows.append(_pooling(case, head.pooler, name, detected))
    return rows


def box_head_rows(case: Case) -> list[Row]:
    head = jax.jit(lambda variables, x, valid: models.networks(case.config, variables).box_head(x, valid))
    x = nhwc(case.trace.stages["box_features"])[None]
    logits, deltas = head(case.variables, x, np.ones(x.shape[:2], bool))
    reference_logits, reference_deltas = box_outputs(case)
    return [
        _tensor(case, "box head", "class logits", relative(logits[0], reference_logits)),
        _tensor(case, "box head", "box deltas", relative(deltas[0], reference_deltas)),
    ]


def final_box_rows(case: Case) -> list[Row]:
    """Detections in resized pixels from the reference's proposals, class logits and deltas."""
    boxes, scores = case.trace.stages["proposals"]
    counts = [len(image) for image in boxes]
    logits, deltas = (_padded(np.split(x, np.cumsum(counts)[:-1])) for x in box_outputs(case))
    proposals = Proposals(_padded(boxes), _padded(scores), _valid(counts))

    def detect(logits, deltas, proposals, size):
        return box_head.detect_boxes(case.config.box_head, jax.nn.softmax(logits), deltas, proposals, size)

    found = jax.jit(jax.vmap(detect))(logits, deltas, proposals, np.array(_input(case).image_sizes))
    pairs = []
    for row, image in enumerate(case.trace.stages["heads"]):
        kept = np.asarray(found.valid[row])
        ours = Boxes(*(np.asarray(x[row])[kept] for x in (found.boxes, found.scores, found.classes)))
        pairs.append((ours, reference_boxes(image)))
    return box_rows(case.name, "final boxes", pairs)


def mask_head_rows(case: Case) -> list[Row]:
    head = jax.jit(lambda variables, *x: models.networks(case.config, variables).mask_head(*x))
    x = nhwc(case.trace.stages["mask_features"])[None]
    classes = np.concatenate([image["labels"].numpy() for image in case.trace.stages["heads"]]).astype(np.int32)
    logits = head(case.variables, x, classes[None] - 1, np.ones(x.shape[:2], bool))[0]
    reference = case.trace.stages["mask_logits"].numpy()[np.arange(len(classes)), classes]
    return [_tensor(case, "mask head", "mask logits", relative(logits, reference))]


def paste_rows(case: Case) -> list[Row]:
    """The reference's mask probabilities pasted into its boxes, as bitmaps and as evaluation encodes them."""
    plain, encoded, convention = [], [], case.config.mask_head.paste
    for resized, final, record in zip(case.trace.stages["heads"], case.trace.detections, case.records, strict=True):
        masks, boxes = resized["masks"][:, 0].numpy(), final["boxes"].numpy()
        reference = final["masks"][:, 0].numpy() > 0.5
        size = (record.height, record.width)
        plain.append(masks_iou(np.asarray(_paste(jnp.asarray(masks), jnp.asarray(boxes), size, convention)), reference))
        encoded.append(masks_iou(pasted(boxes, masks, size, convention), reference))
    return [
        *mask_rows(case.name, "pasting, bitmaps", np.concatenate(plain)),
        *mask_rows(case.name, "pasting, RLE", np.concatenate(encoded)),
    ]


def keypoint_head_rows(case: Case) -> list[Row]:
    """Heatmaps from the reference's RoI features, and keypoints from its heatmaps."""
    head = jax.jit(lambda variables, x: models.networks(case.config, variables).keypoint_head(x))
    reference = case.trace.stages["keypoint_logits"].numpy()
    logits = head(case.variables, nhwc(case.trace.stages["keypoint_features"])[None])[0]
    images = case.trace.stages["heads"]
    boxes = np.concatenate([image["boxes"].numpy() for image in images])
    expected = np.concatenate([image["keypoints"].numpy() for image in images])
    scores = np.concatenate([image["keypoints_scores"].numpy() for image in images])
    found = np.asarray(jax.jit(ops.decode_keypoints, static_argnums=2)(reference, boxes, "torchvision"))
    return [
        _tensor(case, "keypoint head", "heatmaps", relative(logits, reference)),
        *keypoint_rows(case.name, "keypoint decoding", found, expected, scores, 1e-4),
    ]


def keypoint_rows(
    source: str, stage: str, found: np.ndarray, expected: np.ndarray, scores: np.ndarray, score_bound: float
) -> list[Row]:
    """Rows of keypoints [n, J, 3] of the same detections; a score is a logit.

    A keypoint is the highest pixel of a heatmap as large as its box. Where two pixels are level within rounding either
    may be the highest, so that keypoints are matched like boxes: at least 99.5 % lie within .05 px.
    """
    apart = np.abs(found[..., :2] - expected[..., :2]).max(axis=-1)
    return [
        Row(source, stage, "keypoints further than .05 px apart", float(np.mean(~(apart <= 0.05))), 0.005, "of all"),
        Row(source, stage, "keypoints' scores", relative(found[..., 2], scores), score_bound, "relative"),
    ]


def end_to_end_rows(case: Case) -> list[Row]:
    """From the original images to detections in their pixels, each program on its own.

    torchvision cuts the corners of a box to whole pixels when it pastes, so that a difference of 1e-3 px now and then
    moves an edge by a pixel, which costs a small mask more than 2 % of its area. The mean over all masks allows for
    that; for the smallest IoU both programs' masks are pasted into the reference's boxes, which are compared above.
    """
    pairs, own, same, keypoints = [], [], [], []
    predictions = predict(case.config, case.variables, [eval_batch(case)], probabilities.detect)
    for (_, found), reference in zip(predictions, case.trace.detections, strict=True):
        ours, expected = Boxes(found.boxes, found.scores, found.classes), reference_boxes(reference)
        pairs.append((ours, expected))
        rows, columns = match_boxes(ours, expected)
        if found.keypoints is not None:
            points = (reference[name].numpy()[columns] for name in ("keypoints", "keypoints_scores"))
            keypoints.append((found.keypoints[rows], *points))
        if (masks := found.masks) is not None:
            bitmaps = reference["masks"][:, 0].numpy()[columns] > 0.5
            own.append(masks_iou(masks[rows], bitmaps))
            raw, size = found.extras[probabilities.NAME][rows], (found.height, found.width)
            same.append(masks_iou(pasted(expected.boxes[columns], raw, size, "torchvision"), bitmaps))
    rows = box_rows(case.name, "end to end", pairs)
    if keypoints:
        rows += keypoint_rows(case.name, "end to end", *map(np.concatenate, zip(*keypoints, strict=True)), 5e-4)
    if own:
        rows.append(mean_mask_row(case.name, "end to end", np.concatenate(own)))
        rows += mask_rows(case.name, "end to end, reference's boxes", np.concatenate(same))
    return rows


BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_encode = jax.jit(functools.partial(box_ops.encode, weights=BOX_WEIGHTS))
_decode = jax.jit(functools.partial(box_ops.decode, weights=BOX_WEIGHTS))
_nms = jax.jit(ops.nms, static_argnums=(3, 4))
_paste = jax.jit(ops.paste_masks, static_argnums=(2, 3))


@jax.jit
def _matches(boxes: np.ndarray, gt_boxes: np.ndarray) -> jax.Array:
    """The ground truth of each anchor as torchvision notes it: background is -1, what is ignored -2."""
    found = ops.match_boxes(jnp.asarray(boxes), jnp.asarray(gt_boxes), jnp.ones(len(gt_boxes), bool), low_quality=True)
    return jnp.where(found.label == 1, found.gt_index, jnp.where(found.label == 0, -1, -2))


STAGES: dict[str, Callable[[Case], list[Row]]] = {
    "input": input_rows,
    "backbone": feature_rows,
    "RPN head": rpn_rows,
    "anchors": anchor_rows,
    "proposals": proposal_rows,
    "pooling": pooling_rows,
    "box head": box_head_rows,
    "final boxes": final_box_rows,
    "mask head": mask_head_rows,
    "pasting": paste_rows,
    "keypoint head": keypoint_head_rows,
    "end to end": end_to_end_rows,
}


def stages_of(source: Source) -> tuple[str, ...]:
    """The stages of a source that are compared."""
    absent = set() if source.config.mask_head else {"mask head", "pasting"}
    absent |= set() if source.config.keypoint_head else {"keypoint head"}
    return source.stages or tuple(stage for stage in STAGES if stage not in absent)


def eval_batch(case: Case) -> EvalBatch:
    """The original images as `inference.predict` takes them: resized as torchvision does, on a canvas of its size."""
    source, sizes = case.source, [image.shape[:2] for image in case.images]
    targets = [data.resized_size(*size, source.short_side, source.max_side, "torchvision") for size in sizes]
    canvas = [-(-max(side) // 32) * 32 for side in zip(*targets, strict=True)]
    images = np.zeros((len(sizes), *canvas, 3), np.float32)
    for row, (image, size) in enumerate(zip(case.images, targets, strict=True)):
        images[row, : size[0], : size[1]] = data.resize(image, size, "torchvision")
    return EvalBatch(
        images=images,
        image_sizes=np.array(targets, np.int32),
        original_sizes=np.array(sizes, np.int32),
        image_ids=np.array([record.image_id for record in case.records]),
        valid=np.ones(len(sizes), bool),
    )


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().transpose(0, 2, 3, 1)


def features(case: Case) -> dict[str, np.ndarray]:
    return {name: nhwc(x) for name, x in zip(LEVELS, case.trace.stages["features"].values(), strict=True)}


def rpn_outputs(case: Case) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits [B, N] and deltas [B, N, 4] of each level, ordered by row, column and anchor of the cell."""
    logits, deltas = case.trace.stages["rpn"]
    images = len(case.images)
    return [nhwc(x).reshape(images, -1) for x in logits], [nhwc(x).reshape(images, -1, 4) for x in deltas]


def box_outputs(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Class logits, background last, and deltas of the foreground classes, of all images' proposals."""
    logits, deltas = (x.numpy() for x in case.trace.stages["box_outputs"])
    return np.roll(logits, -1, axis=1), deltas.reshape(len(deltas), -1, 4)[:, 1:]


def reference_boxes(detections: dict[str, torch.Tensor]) -> Boxes:
    boxes, scores, labels = (detections[name].numpy() for name in ("boxes", "scores", "labels"))
    return Boxes(boxes, scores, labels - 1)


def pasted(boxes: np.ndarray, masks: np.ndarray, size: tuple[int, int], convention: str) -> np.ndarray:
    """Bitmaps of masks at the original size, by way of the encoding that evaluation uses."""
    rles = encode_masks(boxes, masks, size, convention)
    return np.stack([coco_mask.decode(rle) for rle in rles]).astype(bool)


def anchors(case: Case) -> list[jax.Array]:
    config, padded = case.config, tuple(_input(case).tensors.shape[-2:])
    maps = {name: jnp.asarray(x) for name, x in features(case).items()}
    return rpn.level_anchors(config.rpn, maps, config.backbone.out_strides, padded)


def reference_anchors(case: Case) -> torch.Tensor:
    """The anchors of one image, all levels."""
    return case.model.rpn.anchor_generator(_input(case), list(case.trace.stages["features"].values()))[0]


def _proposals(case: Case, *, train: bool) -> list[tuple[Boxes, Boxes]]:
    logits, deltas = rpn_outputs(case)
    config, images = case.config.rpn, _input(case)
    levels = anchors(case)

    def propose(logits, deltas, size):
        return rpn.propose(config, levels, logits, deltas, size, train=train)

    found = jax.jit(jax.vmap(propose))(logits, deltas, np.array(images.image_sizes))
    expected = _filter_proposals(case, train) if train else case.trace.stages["proposals"]
    pairs = []
    for row, (boxes, scores) in enumerate(zip(*expected, strict=True)):
        kept = np.asarray(found.valid[row])
        probabilities = np.asarray(jax.nn.sigmoid(found.logits[row]))[kept]
        zeros = np.zeros(len(boxes), int)
        ours = Boxes(np.asarray(found.boxes[row])[kept], probabilities, np.zeros(kept.sum(), int))
        pairs.append((ours, Boxes(boxes.numpy(), scores.numpy(), zeros)))
    return pairs


@torch.no_grad()
def _filter_proposals(case: Case, train: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The reference's own selection in training, on its logits and deltas in testing."""
    head, images = case.model.rpn, _input(case)
    logits, deltas = case.trace.stages["rpn"]
    level_sizes = [x[0].numel() for x in logits]
    logits, deltas = rpn_module.concat_box_prediction_layers(logits, deltas)
    proposals = head.box_coder.decode(deltas, [reference_anchors(case)] * len(case.images))
    head.training = train
    try:
        return head.filter_proposals(proposals.view(len(case.images), -1, 4), logits, images.image_sizes, level_sizes)
    finally:
        head.training = False


def _pooling(case: Case, config: PoolerConfig, head: str, boxes: Sequence[torch.Tensor]) -> Row:
    strides = case.config.backbone.out_strides
    pooled = jax.jit(lambda features, rois: pool(config, features, strides, rois))(features(case), _padded(boxes))
    ours = np.concatenate([np.asarray(pooled[row, : len(image)]) for row, image in enumerate(boxes)])
    side = config.output_size
    difference = relative(ours, nhwc(case.trace.stages[f"{head}_features"]))
    return _tensor(case, "RoIAlign", f"{head} features, {side} x {side}", difference)


def _tensor(case: Case, stage: str, quantity: str, difference: float) -> Row:
    return Row(case.name, stage, quantity, difference, 1e-4, "relative")


def _input(case: Case):
    return case.trace.stages["input"][0]


def _padded(arrays: Sequence[np.ndarray | torch.Tensor]) -> np.ndarray:
    """[B, P, ...] with zeros after the rows of each image."""
    rows = max(len(array) for array in arrays)
    return np.stack(
        [np.pad(np.asarray(array), [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1)) for array in arrays]
    )


def _valid(counts: Sequence[int]) -> np.ndarray:
    return np.arange(max(counts))[None] < np.array(counts)[:, None]
