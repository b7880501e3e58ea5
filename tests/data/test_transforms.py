"""Reading, resizing and turning images and boxes."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates

from mask_rcnn_jax.data.augment import transforms
from mask_rcnn_jax.errors import UserError


def pattern(height=6, width=9):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_reads_rgb_unchanged(tmp_path):
    Image.fromarray(pattern()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(transforms.read_image(tmp_path / "a.png"), pattern())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb_bytes(tmp_path, mode):
    grey = np.full((4, 5), 255, np.uint8)
    if mode in ("I;16", "I"):
        picture = Image.fromarray((grey.astype(np.uint16) * 257) if mode == "I;16" else grey.astype(np.int32) * 257)
    elif mode == "F":
        picture = Image.fromarray(grey.astype(np.float32))
    else:
        picture = Image.fromarray(grey).convert("RGB" if mode in ("LA", "CMYK") else mode)
        picture = picture.convert(mode)
    path = tmp_path / ("a.png" if mode not in ("CMYK", "F", "I") else "a.tif")
    picture.save(path)
    image = transforms.read_image(path)
    assert image.shape == (4, 5, 3)
    np.testing.assert_array_equal(image, 255)


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(transforms.read_image(tmp_path / "a.png")[0, :, 0], [0, 1, 128, 255])


# EXIF 2.32, table 6: what turns the stored picture into the displayed one.
DISPLAYED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", DISPLAYED)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pattern()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(transforms.read_image(tmp_path / "a.png"), DISPLAYED[orientation](pattern()))


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.png does not exist"):
        transforms.read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(UserError, match=r"text\.png cannot be read"):
        transforms.read_image(tmp_path / "text.png")
    for suffix in ("png", "jpg"):
        path = tmp_path / f"short.{suffix}"
        Image.fromarray(pattern(64, 64)).save(path)
        path.write_bytes(path.read_bytes()[:-600])
        with pytest.raises(UserError, match=f"short.{suffix} cannot be read"):
            transforms.read_image(path)


@pytest.mark.parametrize(
    ("size", "short", "longest", "detectron2", "torchvision"),
    [
        # detectron2 0.6, ResizeShortestEdge.get_output_shape; torchvision 0.28, _resize_image_and_masks.
        ((480, 640), 800, 1333, (800, 1067), (800, 1066)),
        ((640, 480), 800, 1333, (1067, 800), (1066, 800)),
        ((427, 640), 800, 1333, (800, 1199), (800, 1199)),
        ((300, 900), 800, 1333, (444, 1333), (444, 1333)),
        ((375, 500), 640, 1333, (640, 853), (640, 853)),
        ((256, 256), 256, 1333, (256, 256), (256, 256)),
    ],
)
def test_resized_size_of_the_references(size, short, longest, detectron2, torchvision):
    assert transforms.resized_size(*size, short, longest, "detectron2") == detectron2
    assert transforms.resized_size(*size, short, longest, "torchvision") == torchvision


def test_resize_without_antialiasing_interpolates_between_pixel_centres():
    image = pattern(7, 11)
    result = transforms.resize(image, (5, 17), "torchvision")
    rows = np.clip((np.arange(5) + 0.5) * 7 / 5 - 0.5, 0, None)
    columns = np.clip((np.arange(17) + 0.5) * 11 / 17 - 0.5, 0, None)
    grid = np.meshgrid(rows, columns, indexing="ij")
    for channel in range(3):
        expected = map_coordinates(image[..., channel].astype(float), grid, order=1, mode="nearest")
        np.testing.assert_allclose(result[..., channel], expected, atol=1e-3)


def test_resize_with_antialiasing_is_pillows_and_keeps_bytes():
    image = pattern(40, 60)
    result = transforms.resize(image, (10, 15), "detectron2")
    assert result.dtype == np.uint8
    # Shrinking by 4 with antialiasing averages over all pixels: far from what four neighbours say.
    assert abs(float(result.mean()) - float(image.mean())) < 2
    assert result.std() < image.std() / 2
    assert transforms.resize(image, (40, 60), "detectron2") is image


def corners(image):
    """The box around the white pixels."""
    rows, columns = np.flatnonzero(image.any((1, 2))), np.flatnonzero(image.any((0, 2)))
    return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)


def test_boxes_follow_the_pixels():
    image = np.zeros((20, 30, 3), np.uint8)
    image[3:8, 11:25] = 255
    box = corners(image)
    np.testing.assert_array_equal(transforms.flip_boxes(box, 30), corners(image[:, ::-1]))
    np.testing.assert_array_equal(transforms.vertical_flip_boxes(box, 20), corners(image[::-1]))
    for turns in range(-1, 6):
        np.testing.assert_array_equal(transforms.rotate_boxes(box, 20, 30, turns), corners(np.rot90(image, turns)))


def test_twice_flipped_is_unchanged():
    boxes = np.random.default_rng(0).uniform(0, 64, (5, 4)).astype(np.float32)
    np.testing.assert_allclose(transforms.flip_boxes(transforms.flip_boxes(boxes, 64), 64), boxes, atol=1e-5)
    turned = transforms.rotate_boxes(transforms.rotate_boxes(boxes, 48, 64, 1), 64, 48, 3)
    np.testing.assert_allclose(turned, boxes, atol=1e-5)


def test_clip_boxes_leaves_no_area_outside():
    boxes = np.array([[1, 2, 30, 40], [50, 50, 60, 60]], np.float32)
    np.testing.assert_array_equal(transforms.clip_boxes(boxes, (5, 0, 20, 10)), [[5, 2, 20, 10], [20, 10, 20, 10]])
