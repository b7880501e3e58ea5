import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn_jax.visualize import Instances, draw_instances, side_by_side

NAMES = ("cat", "dog")
GREY = np.full((500, 600, 3), 128, np.uint8)
BOXES = np.array([[100, 120, 200, 260], [300, 50, 420, 150]], np.float32)
CLASSES = np.array([0, 1], np.int32)


def bitmaps(height: int = 500, width: int = 600) -> list[np.ndarray]:
    masks = []
    for x1, y1, x2, y2 in BOXES.astype(int):
        mask = np.zeros((height, width), bool)
        mask[y1 + 10 : y2 - 10, x1 + 10 : x2 - 10] = True
        masks.append(mask)
    return masks


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != 128).any(axis=-1)


def test_small_images_are_magnified_and_otherwise_as_they_were() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), [], None
    picture = draw_instances(image, Instances(*nothing, NAMES))
    assert picture.shape == (384, 512, 3)
    np.testing.assert_array_equal(picture[::4, ::4], image)
    np.testing.assert_array_equal(picture[3::4, 3::4], image)
    np.testing.assert_array_equal(draw_instances(GREY, Instances(*nothing, NAMES)), GREY)


def test_masks_are_tinted_and_what_is_outside_the_boxes_is_left() -> None:
    # One class: no labels without scores.
    single = draw_instances(GREY, Instances(BOXES, CLASSES, bitmaps(), None, ("thing",)))
    touched = changed(single)
    for mask in bitmaps():
        assert touched[mask].all()
    outside = np.ones((500, 600), bool)
    for x1, y1, x2, y2 in BOXES.astype(int):
        outside[y1:y2, x1:x2] = False
    assert not touched[outside].any()
    assert not touched[124:128, 105:195].any()  # between box and mask


def test_forms_of_masks_give_the_same_picture() -> None:
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in bitmaps()]
    strings = [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles]
    corners = BOXES + np.array([10, 10, -10, -10])
    polygons = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2])] for x1, y1, x2, y2 in corners.astype(np.float64)]
    expected = draw_instances(GREY, Instances(BOXES, CLASSES, bitmaps(), None, NAMES))
    for masks in (rles, strings, polygons):
        np.testing.assert_array_equal(draw_instances(GREY, Instances(BOXES, CLASSES, masks, None, NAMES)), expected)


def test_labels_stand_beside_their_boxes_with_scores_and_crowds() -> None:
    plain, labelled = (draw_instances(GREY, Instances(BOXES, CLASSES, None, None, names)) for names in (("x",), NAMES))
    scored = draw_instances(GREY, Instances(BOXES, CLASSES, None, np.array([0.9, 0.5], np.float32), NAMES))
    crowds = draw_instances(GREY, Instances(BOXES, CLASSES, None, None, NAMES, crowds=np.array([True, False])))
    above = (slice(100, 119), slice(100, 200))
    assert not changed(plain)[above].any()
    width = [int(changed(picture)[above].any(axis=0).sum()) for picture in (labelled, scored, crowds)]
    assert 0 < width[0] < width[1]
    assert width[0] < width[2]


@pytest.mark.parametrize("mask", [np.zeros((500, 600), bool), {"size": [500, 600], "counts": "PT\\9"}])
def test_an_empty_mask_is_only_a_box(mask) -> None:
    if isinstance(mask, dict):
        mask = coco_mask.encode(np.asfortranarray(np.zeros((500, 600), np.uint8)))
    arguments = BOXES[:1], CLASSES[:1]
    np.testing.assert_array_equal(
        draw_instances(GREY, Instances(*arguments, [mask], None, NAMES)),
        draw_instances(GREY, Instances(*arguments, None, None, NAMES)),
    )


def test_boxes_at_and_beyond_the_edges() -> None:
    boxes = np.array([[0, 0, 600, 500], [-5, -5, 3, 3], [590, 490, 610, 510], [10, 10, 10, 10]], np.float32)
    picture = draw_instances(
        GREY, Instances(boxes, np.array([0, 1, 0, 1], np.int32), None, np.ones(4, np.float32), NAMES)
    )
    assert picture.shape == GREY.shape


def test_lines_leave_what_they_surround_on_a_large_image() -> None:
    image = np.full((40, 9000, 3), 128, np.uint8)
    picture = draw_instances(
        image, Instances(np.array([[100.0, 5, 140, 35]], np.float32), CLASSES[:1], None, None, ("thing",))
    )
    assert changed(picture).any()
    assert not changed(picture)[13:27, 108:132].any()


def test_keypoints_are_drawn_where_they_are_annotated_and_joined_where_both_are() -> None:
    nothing = np.zeros((1, 4), np.float32), CLASSES[:1], None, None, ("x",)
    keypoints = np.array([[[100, 100, 2], [200, 100, 1], [300, 300, 2], [400, 400, 0]]], np.float32)
    bare = draw_instances(GREY, Instances(*nothing))
    loose = draw_instances(GREY, Instances(*nothing, keypoints=keypoints))
    joined = draw_instances(GREY, Instances(*nothing, keypoints=keypoints, skeleton=[(0, 1), (2, 3)]))
    dots, lines = (loose != bare).any(axis=-1), (joined != loose).any(axis=-1)
    assert dots[100, 100]
    assert dots[100, 200]
    assert not dots[390:410, 390:410].any()
    assert (loose[100, 100] != loose[100, 200]).any()  # a hidden one looks different
    assert lines[98:102, 150].any()
    assert not lines[:, 320:].any()
    rows, columns = np.nonzero(dots)
    assert columns.min() + columns.max() == pytest.approx(100 + 300 - 1, abs=1)  # about the middles of their pixels
    assert rows.min() + rows.max() == pytest.approx(100 + 300 - 1, abs=1)


def test_keypoints_of_a_magnified_image_stay_on_their_pixels() -> None:
    image = np.full((96, 128, 3), 128, np.uint8)
    nothing = np.zeros((1, 4), np.float32), CLASSES[:1], None, None, ("x",)
    drawn = draw_instances(image, Instances(*nothing, keypoints=np.array([[[40.5, 50.5, 2]]], np.float32)))
    touched = (drawn != draw_instances(image, Instances(*nothing))).any(axis=-1)
    rows, columns = np.nonzero(touched)
    # Pixel (40, 50) is magnified to rows 200 to 203 and columns 160 to 163.
    assert (rows.mean(), columns.mean()) == pytest.approx((201.5, 161.5), abs=0.6)


def test_side_by_side() -> None:
    left, right = GREY, 255 - GREY
    sheet = side_by_side([left, right], ["truth", "found"])
    bar = sheet.shape[0] - 500
    assert 0 < bar < 50
    np.testing.assert_array_equal(sheet[bar:, :600], left)
    np.testing.assert_array_equal(sheet[bar:, -600:], right)
    assert (sheet[:bar] != 255).any()


def test_a_track_keeps_its_colour_whatever_else_is_in_the_frame() -> None:
    image = np.zeros((480, 480, 3), np.uint8)
    boxes = np.array([[50, 50, 150, 150], [300, 50, 400, 150], [50, 300, 150, 400]], np.float32)

    def colours(order: list[int], tracks: list[int]) -> dict[int, tuple[int, ...]]:
        drawn = draw_instances(
            image,
            Instances(boxes[order], np.zeros(len(order), np.int32), None, None, ("a", "b"), tracks=np.array(tracks)),
        )
        return {k: tuple(drawn[int(boxes[k, 3]) - 1, int(boxes[k, 0]) + 50].tolist()) for k in order}

    first, later = colours([0, 1, 2], [7, 3, 12]), colours([2, 0], [12, 7])
    assert len({*first.values()}) == 3
    assert later == {k: first[k] for k in (2, 0)}
