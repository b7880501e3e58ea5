"""Large-scale jitter, copy-paste and colour jitter, and that what they are not asked for stays as it was."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mask_rcnn_jax.data import (
    CocoConfig,
    ColorJitterConfig,
    DataConfig,
    LargeScaleJitterConfig,
    load_coco,
    train_batches,
    trainable_records,
)
from mask_rcnn_jax.data.augment import steps, transforms
from mask_rcnn_jax.data.augment.reading import read_picture, training_sample
from mask_rcnn_jax.data.augment.sample import PlacedMask, Sample, mask_of_pixels
from tests.data.coco_files import annotation, write_dataset
from tests.data.test_examples import bright_shapes, paste

LSJ = DataConfig(CocoConfig(), canvas=(96, 96), flip=0.0, large_scale_jitter=LargeScaleJitterConfig())
NAMES = ("nose", "left_eye", "right_eye")


class Drawn(np.random.Generator):
    """Its `uniform` gives these shares of the range, one after the other."""

    def __init__(self, *shares):
        super().__init__(np.random.PCG64(0))
        self.shares = list(shares)

    def uniform(self, low=0.0, high=1.0):
        return low + self.shares.pop(0) * (high - low)


# --- Large-scale jitter -----------------------------------------------------------------------------------------------


def detectron2_geometry(height, width, target, scale, offset):
    """detectron2 0.6: ResizeScale._get_resize, then FixedSizeCrop._get_crop and _get_pad."""
    input_size, target_size = (height, width), (target, target)
    target_scale_size = np.multiply(target_size, scale)
    output_scale = np.minimum(target_scale_size[0] / input_size[0], target_scale_size[1] / input_size[1])
    output_size = np.round(np.multiply(input_size, output_scale)).astype(int)
    max_offset = np.maximum(np.subtract(output_size, target_size), 0)
    corner = np.round(np.multiply(max_offset, offset)).astype(int)
    return output_size, corner


@pytest.mark.parametrize("size", [(60, 80), (100, 80)])
def test_jitter_resizes_cuts_and_fills_as_detectron2(tmp_path, size):
    record = bright_shapes(tmp_path, size)
    picture = read_picture(record, LSJ)
    for share, offset in [(0.0, 0.3), (0.2, 0.9), (0.5, 0.5), (0.8, 0.1), (1.0, 0.7)]:
        sample = steps.large_scale_jitter(picture, record, LSJ, Drawn(share, offset))
        (height, width), (y, x) = detectron2_geometry(*size, 96, 0.1 + share * 1.9, offset)
        whole = transforms.resize_picture(picture, (int(height), int(width)), "detectron2")
        expected = np.full((96, 96, 3), 128)
        seen = whole[y : y + 96, x : x + 96]
        expected[: seen.shape[0], : seen.shape[1]] = seen
        assert sample.image.dtype == np.uint8
        assert abs(sample.image - expected).max() <= 1  # Pillow rounds a window's coefficients by itself


def test_jitter_keeps_boxes_and_masks_on_their_pixels(tmp_path):
    record = bright_shapes(tmp_path)
    config = replace(LSJ, flip=0.5, vertical_flip=0.5, rotate90=0.5)
    config = replace(config, large_scale_jitter=LargeScaleJitterConfig(0.1, 4.0))
    counts = set()
    for seed in range(30):
        example = training_sample(record, config, np.random.default_rng(seed))
        assert example.image.shape == (96, 96, 3)
        grey = (abs(example.image.astype(int) - 128) < 1).all(axis=2)  # what the image leaves free
        bright = (example.image[..., 0] > 127) & ~grey
        if bright.sum() > 200:  # smaller ones are mostly their own edge
            pasted = paste(example)
            assert (bright & pasted).sum() / (bright | pasted).sum() > 0.85
        counts.add(len(example.boxes))
        for box in example.boxes[(example.boxes[:, 2:] - example.boxes[:, :2]).min(axis=1) > 6]:
            # Drawn around what is left of the mask: each side touches it.
            x1, y1, x2, y2 = np.round(box).astype(int)
            inside = bright[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1]
            assert all(side.any() for side in (inside[:5], inside[-5:], inside[:, :5], inside[:, -5:]))
    assert counts >= {1, 2}


def test_jitter_moves_keypoints_with_the_pixels(tmp_path):
    record, spots = spotted(tmp_path)
    for seed in range(20):
        sample = steps.large_scale_jitter(read_picture(record, LSJ), record, LSJ, np.random.default_rng(seed))
        scale = (sample.boxes[0, 2] - sample.boxes[0, 0]) if len(sample.boxes) else 0
        for (x, y, visibility), value in zip(sample.keypoints.reshape(-1, 3), spots, strict=False):
            if visibility and scale > 40:
                near = sample.image[max(int(y) - 1, 0) : int(y) + 2, max(int(x) - 1, 0) : int(x) + 2].reshape(-1, 3)
                assert (abs(near.astype(int) - value).max(axis=1) < 60).any()


def spotted(tmp_path):
    """A record of one instance with three keypoints, each a disc of its own colour."""
    spots = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    places = [(20, 12), (40, 30), (60, 48)]
    image = np.zeros((60, 80, 3), np.uint8)
    y, x = np.mgrid[:60, :80]
    for (cx, cy), colour in zip(places, spots, strict=True):
        image[(x - cx) ** 2 + (y - cy) ** 2 <= 16] = colour
    flat = [value for cx, cy in places for value in (cx, cy, 2)]
    entry = annotation(id=1, bbox=[4, 4, 72, 52], segmentation=[[4, 4, 76, 4, 76, 56, 4, 56]], keypoints=flat)
    categories = [{"id": 20, "name": "person", "keypoints": list(NAMES)}]
    images = [{"id": 7, "file_name": "7.png", "width": 80, "height": 60}]
    dataset = load_coco(write_dataset(tmp_path, [entry], images=images, categories=categories), "train")
    Image.fromarray(image).save(dataset.records[0].path)
    return dataset.records[0], spots


def test_a_window_is_resized_as_part_of_the_whole():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    for size in [(37, 51), (50, 70), (120, 200)]:
        whole = transforms.resize_picture(image, size, "detectron2").astype(int)
        for window in [(0, 0, size[1], size[0]), (5, 3, 40, 30), (size[1] - 20, size[0] - 9, size[1], size[0])]:
            x1, y1, x2, y2 = window
            part = transforms.resize_window(image, size, window, "detectron2")
            assert abs(part - whole[y1:y2, x1:x2]).max() <= 1
            exact = transforms.resize_picture(image, size, "torchvision")[y1:y2, x1:x2]
            np.testing.assert_array_equal(transforms.resize_window(image, size, window, "torchvision"), exact)


@pytest.mark.parametrize(("size", "window"), [((192, 160), (3, 5, 83, 15)), ((12, 160), (9, 2, 39, 10))])
def test_a_window_is_rounded_in_the_order_of_the_whole(size, window):
    """By itself, Pillow would begin with another axis here. The places of these windows are exact in float32."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 80, 3), np.uint8))
    x1, y1, x2, y2 = window
    part = transforms.resize_window(image, size, window, "detectron2")
    np.testing.assert_array_equal(part, transforms.resize_picture(image, size, "detectron2")[y1:y2, x1:x2])


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (250, 2), (30, 30)])
def test_the_axis_that_comes_first_is_pillows(shape):
    height, width = shape
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8))
    for size in [(20, 30), (50, 90), (25, 1), (120, 9)]:
        columns_first = transforms.columns_come_first(height, width, *size)
        between = (width, size[0]) if columns_first else (size[1], height)
        steps = image.resize(between, Image.Resampling.BILINEAR).resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(np.asarray(steps), transforms.resize_picture(image, size, "detectron2"))


def test_jitter_and_crop_exclude_each_other():
    with pytest.raises(ValueError, match="leave crop at none"):
        replace(LSJ, crop=(10, 10))


# --- Copy-paste -------------------------------------------------------------------------------------------------------


def blank(height=40, width=50, value=0, bitmaps=(), keypoints=None):
    """A sample of one grey value, with these bitmaps as masks."""
    masks, boxes = zip(*map(mask_of_pixels, bitmaps), strict=True) if bitmaps else ((), ())
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    keypoints = np.zeros((len(masks), 0, 3), np.float32) if keypoints is None else keypoints
    image = np.full((height, width, 3), value, np.uint8)
    return Sample(image, boxes, np.arange(len(masks), dtype=np.int32), tuple(masks), keypoints)


def bitmap_of(sample, row):
    bitmap = np.zeros(sample.image.shape[:2], bool)
    x1, y1, x2, y2 = window = tuple(sample.boxes[row].astype(int).tolist())
    bitmap[y1:y2, x1:x2] = sample.masks[row].pixels(sample.boxes[row], window)
    return bitmap


def rectangle(x1, y1, x2, y2, height=40, width=50):
    bitmap = np.zeros((height, width), bool)
    bitmap[y1:y2, x1:x2] = True
    return bitmap


def blob(rng, height, width):
    y, x = np.mgrid[:height, :width]
    cy, cx, a, b = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(3, 14), rng.uniform(3, 14)
    return ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1


@pytest.mark.parametrize("donor_size", [(40, 50), (30, 70)])
def test_pasted_instances_hide_what_lies_below(donor_size):
    """Against the definition on full bitmaps: below &= ~pasted; boxes are around what is left."""
    config = replace(LSJ, copy_paste=1.0)
    lost = hidden = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        below = [b for b in (blob(rng, 40, 50) for _ in range(5)) if b.any()]
        above = [b for b in (blob(rng, *donor_size) for _ in range(4)) if b.any()]
        sample, donor = blank(value=50, bitmaps=below), blank(*donor_size, 200, above)
        chosen = np.random.default_rng(seed)
        chosen.random()
        kept = chosen.random(len(above)) < 0.5
        result = steps.copy_paste(sample, np.random.default_rng(seed), config, lambda _, donor=donor: donor)

        pasted = [np.zeros((40, 50), bool) for b, keep in zip(above, kept, strict=True) if keep]
        height, width = min(40, donor_size[0]), min(50, donor_size[1])
        for target, b in zip(pasted, np.array(above)[kept], strict=True):
            target[:height, :width] = b[:height, :width]
        union = np.any(pasted, axis=0) if pasted else np.zeros((40, 50), bool)
        np.testing.assert_array_equal(result.image, np.where(union, 200, 50)[..., None].repeat(3, axis=2))
        left = [b & ~union for b in below]
        expected = [b for b in [*left, *pasted] if b.any()]
        assert len(result.boxes) == len(expected)
        for row, b in enumerate(expected):
            np.testing.assert_array_equal(bitmap_of(result, row), b)
            np.testing.assert_array_equal(result.boxes[row], mask_of_pixels(b)[1])
            x1, y1, x2, y2 = result.boxes[row].astype(int)
            assert np.abs(result.masks[row].grid(56) / 255).mean() == pytest.approx(b[y1:y2, x1:x2].mean(), abs=0.01)
        lost += sum(not b.any() for b in left)
        hidden += sum((a != b).any() for a, b in zip(left, below, strict=True))
    assert lost > 0
    assert hidden > 20


def test_covered_keypoints_count_as_hidden():
    config = replace(LSJ, copy_paste=1.0)
    points = np.array([[[5.5, 5.5, 2], [30.5, 20.5, 2], [0, 0, 0]]], np.float32)
    sample = blank(bitmaps=[rectangle(2, 2, 45, 35)], keypoints=points)
    donor = blank(
        value=200, bitmaps=[rectangle(25, 15, 35, 25)], keypoints=np.array([[[26.5, 16.5, 2]] * 3], np.float32)
    )
    results = [steps.copy_paste(sample, np.random.default_rng(s), config, lambda _: donor) for s in range(10)]
    assert {len(result.boxes) for result in results} == {1, 2}
    for result in results:
        hidden = 1 if len(result.boxes) == 2 else 2
        np.testing.assert_array_equal(result.keypoints[0], [[5.5, 5.5, 2], [30.5, 20.5, hidden], [0, 0, 0]])


def test_instances_that_nothing_covers_keep_their_annotation():
    polygon = [np.array([2.0, 2, 12, 2, 7, 12])]
    mask = PlacedMask(polygon, np.array([2, 2, 12, 12], np.float32))
    image = np.zeros((40, 50, 3), np.uint8)
    boxes = np.array([[2, 2, 12, 12]], np.float32)
    sample = Sample(image, boxes, np.zeros(1, np.int32), (mask,), np.zeros((1, 0, 3), np.float32))
    donor = blank(value=9, bitmaps=[rectangle(10, 9, 20, 20)])  # meets the box but not the triangle in it
    result = steps.copy_paste(sample, np.random.default_rng(1), replace(LSJ, copy_paste=1.0), lambda _: donor)
    assert result.masks[0] is mask


def test_copy_paste_draws_from_all_donors_and_limits_the_sum(tmp_path):
    record = bright_shapes(tmp_path)
    config = replace(LSJ, copy_paste=1.0, max_instances=2, large_scale_jitter=LargeScaleJitterConfig(0.9, 1.1))
    examples = [training_sample(record, config, np.random.default_rng(s), (), [record]) for s in range(20)]
    assert max(len(example.boxes) for example in examples) == 2
    assert max(example.dropped for example in examples) >= 1
    for example in examples:
        bright, pasted = example.image[..., 0] > 128, paste(example)
        assert (pasted & ~bright).sum() < 0.1 * max(pasted.sum(), 1)
    never = replace(config, copy_paste=0.0)
    alone = training_sample(record, never, np.random.default_rng(0))
    with_donors = training_sample(record, never, np.random.default_rng(0), (), [record])
    np.testing.assert_array_equal(alone.image, with_donors.image)


# --- Masks in place ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("polygons", [False, True])
def test_a_placed_mask_follows_flips_and_turns(polygons):
    """Against NumPy's flips of the bitmap that pycocotools decodes."""
    rng = np.random.default_rng(0)
    height, width = 40, 52
    if polygons:
        segmentation = [np.array([5.0, 4, 45, 10, 30, 36, 8, 30])]
        rle = coco_mask.merge(coco_mask.frPyObjects([segmentation[0].tolist()], height, width))
    else:
        rle = coco_mask.encode(np.asfortranarray(blob(rng, height, width), np.uint8))
        segmentation = rle
    bitmap = coco_mask.decode(rle).astype(bool)
    box = mask_of_pixels(bitmap)[1]
    mask, boxes = PlacedMask(segmentation, box), box[None]
    for step in range(12):
        kind = int(rng.integers(3))
        height, width = bitmap.shape
        if kind == 0:
            mask, bitmap, boxes = mask.flipped(), bitmap[:, ::-1], transforms.flip_boxes(boxes, width)
        elif kind == 1:
            mask, bitmap = mask.flipped().turned(2), bitmap[::-1]
            boxes = transforms.vertical_flip_boxes(boxes, height)
        else:
            turns = int(rng.integers(1, 4))
            mask, bitmap = mask.turned(turns), np.rot90(bitmap, turns)
            boxes = transforms.rotate_boxes(boxes, height, width, turns)
        height, width = bitmap.shape
        differing = mask.pixels(boxes[0], (0, 0, width, height)) != bitmap
        assert differing.sum() == 0, f"{differing.sum()} pixels differ after step {step}"
        x1, y1, x2, y2 = boxes[0].astype(int)
        cells = mask.grid(8).astype(float) / 255
        assert cells.mean() == pytest.approx(bitmap[y1:y2, x1:x2].mean(), abs=0.03)


# --- Colour -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "index"), [("brightness", 0), ("contrast", 1), ("saturation", 2)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_colour_jitter_is_torchvisions(kind, index, share):
    """torchvision's formulas: blends with black, with the mean of the grey image, or with the grey image."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    config = ColorJitterConfig(**dict.fromkeys(("brightness", "contrast", "saturation"), 0.0) | {kind: 0.6})
    shares = [0.5, 0.5, 0.5]
    shares[index] = share
    result = np.asarray(steps.color_jitter(Image.fromarray(pixels), config, Drawn(*shares))).astype(float)
    factor = 0.4 + share * 1.2
    grey = pixels @ np.array([0.2989, 0.587, 0.114])
    other = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey[..., None]}[kind]
    np.testing.assert_allclose(result, np.clip(factor * pixels + (1 - factor) * other, 0, 255), atol=2)


def test_colour_jitter_changes_colours_only(tmp_path):
    record = bright_shapes(tmp_path)
    plain = replace(LSJ, large_scale_jitter=None, short_side=(90,))
    first = training_sample(record, plain, np.random.default_rng(0))
    second = training_sample(record, replace(plain, color_jitter=ColorJitterConfig()), np.random.default_rng(0))
    assert (first.image != second.image).any()
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_array_equal(first.grids(56), second.grids(56))


# --- Stability --------------------------------------------------------------------------------------------------------

GOLDEN = {
    "plain": "868d1295cf86baa7",
    "crop": "3b6f542d012745bb",
    "torchvision": "430e8a0f2ea072de",
}


def digest(batches):
    result = hashlib.sha256()
    for batch in batches:
        inputs, truth = batch.inputs, batch.inputs.ground_truth
        assert truth.mask_regions is None  # the boxes, which lay in the batch twice then
        of_truth = [truth.boxes, truth.classes, truth.masks, truth.boxes, truth.valid, truth.keypoints]
        arrays = [inputs.images, inputs.image_sizes, *of_truth, inputs.example_index]
        for array in [*arrays, batch.image_ids, batch.dropped_instances]:
            result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()[:16]


@pytest.mark.parametrize("name", GOLDEN)
def test_batches_of_a_seed_stay_the_same(tmp_path, name):
    """Hashes of the batches of commit ac63e18, before there was any of the above."""
    dataset = scenes(tmp_path)
    config = DataConfig(CocoConfig(), short_side=(60, 72, 90), max_side=128, canvas=(128, 128), num_workers=0)
    config = {
        "plain": config,
        "crop": replace(config, crop=(50, 70), vertical_flip=0.4, rotate90=0.5, max_instances=2),
        "torchvision": replace(config, resize="torchvision", crop=(64, 64), canvas=(96, 128)),
    }[name]
    assert digest(train_batches(dataset, config, 3, 11, range(2, 8))) == GOLDEN[name]


def scenes(root):
    """Five images of noise with polygons, RLEs and keypoints."""
    rng = np.random.default_rng(5)
    images, annotations = [], []
    for image_id, (height, width) in enumerate([(60, 80), (80, 60), (48, 96), (70, 70), (90, 64)]):
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        for _ in range(4):
            bitmap = blob(rng, height, width) | blob(rng, height, width)
            if not bitmap.any():
                continue
            x1, y1, x2, y2 = mask_of_pixels(bitmap)[1].tolist()
            rle = coco_mask.encode(np.asfortranarray(bitmap, np.uint8))
            polygon = [x1, y1, x2, (y1 + y2) / 2, (x1 + x2) / 2, y2]
            segmentation = {"size": [height, width], "counts": rle["counts"].decode()}
            flat = [
                value for _ in NAMES for value in (*rng.uniform((x1, y1), (x2, y2)).tolist(), int(rng.integers(1, 3)))
            ]
            annotations.append(
                annotation(
                    id=len(annotations),
                    image_id=image_id,
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    segmentation=[polygon] if len(annotations) % 2 else segmentation,
                    keypoints=flat,
                )
            )
    categories = [{"id": 20, "name": "person", "keypoints": list(NAMES)}]
    dataset = load_coco(write_dataset(root, annotations, images=images, categories=categories), "train")
    for record in dataset.records:
        pixels = np.random.default_rng(record.image_id).integers(0, 256, (record.height, record.width, 3), np.uint8)
        Image.fromarray(pixels).save(record.path)
    assert len(trainable_records(dataset, DataConfig())) == 5
    return dataset
