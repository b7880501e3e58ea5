"""Values of a head's own in detections: what is taken of them, and their way through files and back."""

import csv
import json
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.cli.prediction.outputs import FORMATS
from mask_rcnn_jax.cli.prediction.videos import _COLUMNS, ImageSequence, predict_clip
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.export import runtime
from mask_rcnn_jax.inference import Detections
from mask_rcnn_jax.inference.results.outputs import COLUMNS, to_geojson
from mask_rcnn_jax.inference.stitching import stitch
from mask_rcnn_jax.media.inputs import InputImage
from mask_rcnn_jax.value_names import CELLS, TAKEN, check_value_names, is_free
from tests.inference.test_detections import HEIGHT, NAMES, WIDTH, some

DEPTH = np.array([0.1, np.nan, np.inf, 2.0], np.float32)
CODE = np.arange(8, dtype=np.float32).reshape(4, 2) / 8
COUNT = np.array([3, 0, 2, 1], np.int32)
LONG = np.zeros((4, 17), np.float32)  # too long for a table
GRID = np.ones((4, 2, 2), np.float32)
EXTRAS = {"depth": DEPTH, "code": CODE, "count": COUNT, "embedding": LONG, "grid": GRID}


def own(**changes) -> Detections:
    return replace(some(), extras=EXTRAS | changes, maps={"heat": np.zeros((5, 7, 3), np.float32)})


def strict(text: str) -> object:
    """What JSON text holds, without Python's NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("which", [np.array([2, 0]), np.array([True, False, True, False]), np.zeros(0, int)])
def test_take_forgets_no_field(which) -> None:
    stuff = np.ones((HEIGHT, WIDTH), np.uint8)
    found = replace(own(), keypoints=some(keypoints=True).keypoints, stuff=stuff)
    taken = found.take(which)
    for name in ("boxes", "scores", "classes", "keypoints"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(found, name)[which])
    assert taken.extras.keys() == EXTRAS.keys()
    for name, values in taken.extras.items():
        np.testing.assert_array_equal(values, EXTRAS[name][which])
    assert taken.maps is found.maps
    assert taken.stuff is stuff
    known = {"height", "width", "boxes", "scores", "classes", "class_names", "rles", "keypoints", "path"}
    assert {field.name for field in fields(found)} == known | {"extras", "maps", "stuff"}, "say what take does with it"


def test_to_coco_results_and_back() -> None:
    results = own().to_coco(17)
    assert [result["depth"] for result in results] == [pytest.approx(0.1), None, None, 2.0]
    assert results[1]["code"] == [0.25, 0.375]
    assert results[0]["grid"] == [[1, 1], [1, 1]]
    assert "heat" not in results[0]
    strict(json.dumps(results))
    back = Detections.from_coco(results[::-1], HEIGHT, WIDTH, NAMES)
    assert back.extras.keys() == EXTRAS.keys()
    expected = EXTRAS | {"depth": np.where(np.isfinite(DEPTH), DEPTH, np.nan)}
    for name, values in back.extras.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert back.extras["count"].dtype.kind == "i"
    assert strict(json.dumps(back.to_coco(17))) == results
    assert Detections.from_coco([], HEIGHT, WIDTH, NAMES).extras == {}


def deep() -> list:
    nested: list = []
    for _ in range(500):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    ("first", "second"),
    [("a", "b"), (1, "b"), ([1], [1, 2]), ([1], 1), ({}, {}), (10**400, 1), (deep(), deep()), ([None, {}], [1, 2])],
)
def test_other_keys_of_foreign_results_are_left_out(first, second) -> None:
    results = [result | {"theirs": value} for result, value in zip(some().to_coco(1), (first, second), strict=False)]
    assert Detections.from_coco(results, HEIGHT, WIDTH, NAMES).extras == {}
    results[0] |= {"not a name": 1, "id": 7, "area": 3.5, "iscrowd": 0, "only": 1, "ours": 1}
    results[1] |= {"not a name": 2, "id": 8, "area": 2, "iscrowd": 0, "ours": None}
    assert Detections.from_coco(results, HEIGHT, WIDTH, NAMES).extras.keys() == {"ours"}


@pytest.mark.parametrize("name", ["bbox", "score", "area", "id", "x1", "class", "masks", "keypoints", "two words", ""])
def test_names_that_are_taken_are_refused(name) -> None:
    with pytest.raises(UserError, match=f"a head calls a value '{name}'"):
        own(**{name: DEPTH})
    with pytest.raises(UserError, match="'depth', which is the name of another"):
        replace(some(), extras={"depth": DEPTH}, maps={"depth": np.zeros((2, 2))})


def test_all_names_of_ours_are_taken() -> None:
    assert {*COLUMNS, *_COLUMNS, *some(keypoints=True).to_coco(1)[0]} <= TAKEN
    assert to_geojson(some())["features"][0]["properties"].keys() <= TAKEN
    of_ours = {field.name for field in fields(Detections)} - {"height", "width", "rles", "class_names", "path"}
    assert of_ours - {"extras", "maps"} <= TAKEN
    check_value_names(["depth", "depth_1"])
    assert CELLS == runtime.CELLS
    assert not is_free(f"depth{CELLS}")


@pytest.mark.filterwarnings("ignore:OpenCV.*is not installed")
def test_to_supervision_and_back() -> None:
    pytest.importorskip("supervision", reason="needs supervision")
    theirs = own().to_supervision()
    assert theirs.data.keys() == EXTRAS.keys() | {"class_name"}
    theirs.data["label"] = np.array(["a", "b", "c", "d"])
    back = Detections.from_supervision(theirs[::-1], HEIGHT, WIDTH, NAMES)
    assert back.extras.keys() == EXTRAS.keys()
    for name, values in back.extras.items():
        np.testing.assert_array_equal(values, EXTRAS[name], strict=True)


def test_geojson_has_what_is_one_number() -> None:
    features = to_geojson(own())["features"]
    assert features[1]["properties"].keys() == {"instance", "score", "class", "classification", "depth", "count"}
    assert [feature["properties"]["depth"] for feature in features] == [pytest.approx(0.1), None, None]
    strict(json.dumps(features))


def written(folder: Path, name: str, *found: Detections) -> str:
    with FORMATS[name](OutputFolder(folder), (1, 2, 3)) as writer:
        for number, one in enumerate(found):
            writer.write(f"image{number}", one, lambda: np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return writer.place.read_text()


def test_tables_have_columns_for_numbers_and_short_vectors(tmp_path) -> None:
    none = own().take(np.zeros(0, int))
    heading, *rows = csv.reader(written(tmp_path, "csv", none, own()).splitlines())
    assert heading == [*COLUMNS, "depth", "code_1", "code_2", "count"]
    assert [row[len(COLUMNS) :] for row in rows] == [
        ["0.1", "0.0", "0.125", "3"],
        ["", "0.25", "0.375", "0"],
        ["", "0.5", "0.625", "2"],
        ["2.0", "0.75", "0.875", "1"],
    ]
    with pytest.raises(UserError, match="'code' would be a second column 'code_2'"):
        written(tmp_path, "csv", replace(some(), extras={"code_2": COUNT, "code": CODE}))
    with pytest.raises(UserError, match="'keypoint1_x' would be a second column"):
        written(tmp_path, "csv", replace(some(keypoints=True), extras={"keypoint1_x": COUNT}))


def test_the_coco_file_has_them_too(tmp_path) -> None:
    content = strict(written(tmp_path, "coco", own()))
    assert isinstance(content, dict)
    assert [annotation["count"] for annotation in content["annotations"]] == COUNT.tolist()
    assert content["annotations"][0]["area"] == 15 * 20 - 6 * 9
    back = Detections.from_coco(content["annotations"], HEIGHT, WIDTH, NAMES)
    assert back.extras.keys() == EXTRAS.keys()


class Always:
    shapes = ()

    def stream(self, images, on_error=None):
        for _ in images:
            yield own()


def test_the_table_of_a_video_has_them_too(tmp_path) -> None:
    pytest.importorskip("av", reason="needs PyAV, the extra `video`")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    clip = ImageSequence([InputImage(tmp_path / "a.png", "a")], Fraction(25), 10**6)
    assert predict_clip(Always(), clip, "clip", OutputFolder(tmp_path / "out"), []) == (1, 4)
    heading, first, *_ = csv.reader((tmp_path / "out" / "videos" / "clip.csv").read_text().splitlines())
    assert heading == [*_COLUMNS, "depth", "code_1", "code_2", "count"]
    assert first[-4:] == ["0.1", "0.0", "0.125", "3"]


def test_a_joined_instance_has_what_its_best_part_says_and_tiles_have_no_map() -> None:
    windows = np.array([[0, 0, 100, 100], [60, 0, 160, 100]])
    left, right = (
        Detections(
            height=100,
            width=100,
            boxes=np.array(boxes, np.float32),
            scores=np.array(scores, np.float32),
            classes=np.zeros(len(boxes), np.int32),
            class_names=NAMES,
            rles=None,
            extras={"code": np.array(codes, np.float32), "number": np.arange(len(boxes)) + 10 * len(boxes)},
            maps={"heat": np.zeros((4, 4), np.float32)},
        )
        for boxes, scores, codes in (
            ([(20, 30, 100, 60), (5, 70, 15, 90)], [0.6, 0.5], [(1, 2), (3, 4)]),
            ([(0, 31, 80, 60)], [0.7], [(5, 6)]),
        )
    )
    found = stitch(windows, [left, right], (100, 160))
    np.testing.assert_array_equal(found.extras["code"], [[5, 6], [3, 4]])
    np.testing.assert_array_equal(found.extras["number"], [10, 21])
    assert found.maps == {}
    none = stitch(windows, [left.take(np.zeros(0, int)), right.take(np.zeros(0, int))], (100, 160))
    assert none.extras["code"].shape == (0, 2)
    # An image within a tile is what the predictor says.
    alone = stitch(windows[:1], [left], (100, 100))
    np.testing.assert_array_equal(alone.extras["code"], left.extras["code"])
    assert alone.maps.keys() == {"heat"}
