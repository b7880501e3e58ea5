"""The comparisons of the conformance report, on differences that are known."""

import numpy as np
import pytest

from tests.conformance.rows import (
    Boxes,
    Row,
    compare_boxes,
    markdown,
    masks_iou,
    match_boxes,
    relative,
    relative_norms,
    relative_values,
)


def row(difference: float, bound: float = 1e-4) -> Row:
    return Row("model", "stage", "quantity", difference, bound, "relative")


def boxes(*corners: tuple[float, float, float, float], scores=None, classes=None) -> Boxes:
    count = len(corners)
    scores = np.linspace(0.9, 0.5, count) if scores is None else np.array(scores)
    return Boxes(np.array(corners, float), scores, np.zeros(count, int) if classes is None else np.array(classes))


LEFT, RIGHT = (0.0, 0.0, 40.0, 20.0), (50.0, 0.0, 90.0, 30.0)


def test_a_row_holds_up_to_its_bound_and_never_for_nan():
    assert row(0.0).ok
    assert row(1e-4).ok
    assert not row(1.1e-4).ok
    assert not row(float("nan")).ok
    assert not row(float("inf")).ok


def test_relative_is_measured_by_the_largest_value():
    reference = np.array([[0.0, -4.0], [1.0, 2.0]])
    assert relative(reference + np.array([[0.0, 0.0], [0.02, 0.0]]), reference) == pytest.approx(0.005)
    assert relative(reference, reference) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_never_fine(bad):
    value, fine = np.array([1.0, bad]), np.array([1.0, 2.0])
    for ours, reference in ((value, fine), (fine, value), (value, value)):
        assert not row(relative(ours, reference), 1e9).ok
        assert not row(relative_values({"a": ours[1]}, {"a": reference[1]}), 1e9).ok
        assert not row(relative_norms({"a": ours}, {"a": reference})["a"], 1e9).ok


def test_a_reference_of_zeros_is_met_by_zeros_alone():
    zeros = np.zeros(3)
    assert relative(zeros, zeros) == 0
    assert relative(zeros + 1e-30, zeros) == np.inf
    assert relative_norms({"a": zeros}, {"a": zeros}) == {"a": 0}


def test_shapes_and_names_must_agree():
    with pytest.raises(ValueError, match="shapes"):
        relative(np.zeros(3), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="nothing"):
        relative(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="names"):
        relative_values({"a": 1.0}, {"a": 1.0, "b": 2.0})
    with pytest.raises(ValueError, match="names"):
        relative_norms({}, {})


def test_norms_are_relative_by_name():
    reference = {"kernel": np.array([3.0, 4.0]), "bias": np.array([1.0])}
    ours = {"kernel": np.array([3.0, 4.5]), "bias": np.array([1.0])}
    assert relative_norms(ours, reference) == pytest.approx({"kernel": 0.1, "bias": 0.0})


def test_boxes_are_matched_by_class_and_overlap_not_by_index():
    reference = boxes(LEFT, RIGHT, classes=[1, 2])
    swapped = boxes((50.0, 0.01, 90.0, 30.0), LEFT, classes=[2, 1])
    rows, columns = match_boxes(swapped, reference)
    assert list(zip(rows, columns, strict=True)) == [(0, 1), (1, 0)]
    difference = compare_boxes([(swapped, reference)])
    assert difference.unmatched == 0
    assert difference.coordinates == pytest.approx(0.01)


def test_another_class_or_too_little_overlap_is_no_match():
    reference = boxes(LEFT, RIGHT)
    assert compare_boxes([(boxes(LEFT, RIGHT, classes=[0, 1]), reference)]).unmatched == 0.5
    assert compare_boxes([(boxes(LEFT, (50.0, 0.0, 90.0, 20.0)), reference)]).unmatched == 0.5
    assert compare_boxes([(boxes(LEFT), reference)]).unmatched == 0.5
    assert compare_boxes([(reference, boxes(LEFT))]).unmatched == 0.5


def test_unmatched_boxes_are_counted_over_all_images():
    both = boxes(LEFT, RIGHT)
    assert compare_boxes([(both, both), (boxes(LEFT), both)]).unmatched == 0.25


def test_order_may_differ_between_ties_alone():
    reference = boxes(LEFT, RIGHT, scores=[0.8, 0.7996])
    swapped = boxes(RIGHT, LEFT, scores=[0.7996, 0.8])
    assert compare_boxes([(reference, reference)]).order == 0
    assert compare_boxes([(swapped, reference)]).order == pytest.approx(4e-4)
    apart = boxes(LEFT, RIGHT, scores=[0.8, 0.6])
    assert compare_boxes([(boxes(RIGHT, LEFT, scores=[0.6, 0.8]), apart)]).order == pytest.approx(0.2)


def test_a_box_that_is_not_a_number_matches_nothing():
    broken = boxes((np.nan,) * 4, RIGHT)
    assert compare_boxes([(broken, boxes(LEFT, RIGHT))]).unmatched == 0.5
    assert not row(compare_boxes([(boxes((np.nan,) * 4), boxes(LEFT))]).coordinates, 1e9).ok


def test_iou_of_masks():
    a, b = np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4), bool)
    a[0, :2], b[0, :1] = True, True
    a[1, 0, 0] = True
    np.testing.assert_allclose(masks_iou(a, b), [0.5, 0.0, 1.0])


def test_the_table_says_what_does_not_hold():
    table = markdown([row(5e-5), row(float("nan"))]).splitlines()
    assert len({len(line) for line in table}) == 1
    assert table[2].endswith("| yes   |")
    assert table[3].endswith("| NO    |")
