import pytest

from mask_rcnn_jax.data import CocoConfig, load_coco
from mask_rcnn_jax.data.augment.keypoint_flips import COCO_KEYPOINTS, describe_flips, find_pairs, mirrored
from mask_rcnn_jax.errors import UserError

# detectron2 0.6, builtin_meta.COCO_PERSON_KEYPOINT_FLIP_MAP: ("left_eye", "right_eye"), ("left_ear", ...), ...
COCO_MIRRORED = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_eye", "right_eye"),
        ("Left eye", "Right eye"),
        ("LEFT-EYE", "RIGHT-EYE"),
        ("leftEye", "rightEye"),
        ("eyeLeft", "eyeRight"),
        ("EyeLeft", "EyeRight"),
        ("eye.left", "eye.right"),
        ("lefteye", "righteye"),
        ("Lefteye", "Righteye"),
        ("eyeleft", "eyeright"),
        ("l_eye", "r_eye"),
        ("eye_l", "eye_r"),
        ("L-Eye", "R-Eye"),
        ("LEye", "REye"),
        ("lEye", "rEye"),
        ("eyeL", "eyeR"),
        ("leftEye1", "rightEye1"),
        ("eye 1 L", "eye 1 R"),
        ("left_eye_left_corner", "right_eye_right_corner"),
        ("left", "right"),
        ("L", "R"),
    ],
)
def test_left_and_right_change_places(left: str, right: str) -> None:
    assert mirrored(["nose", left, "neck", right]).tolist() == [0, 3, 2, 1]
    assert mirrored([right, "bright", left]).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["nose", "neck"],
        ["left_eye", "right_ear"],
        ["leftover", "right_on"],
        ["bright", "light", "height"],
        ["left_eye", "eye_r"],
        ["lip", "rip"],
        ["left_eye", "LeftEye", "right_eye"],
        ["point_1", "point_2"],
    ],
)
def test_what_has_no_counterpart_stays(names: list[str]) -> None:
    assert mirrored(names).tolist() == list(range(len(names)))


def test_coco_is_mirrored_as_in_detectron2(shared) -> None:
    assert mirrored(COCO_KEYPOINTS).tolist() == COCO_MIRRORED
    dataset = load_coco(CocoConfig(str(shared / "data" / "coco_person_kp")), "val")
    assert dataset.keypoint_names == COCO_KEYPOINTS
    assert len(dataset.skeleton) == 19


def test_settings_name_the_pairs_that_names_do_not_tell() -> None:
    names = ["nose", "oeil_g", "oeil_d", "left_ear", "right_ear"]
    assert mirrored(names, [("oeil_d", "oeil_g")]).tolist() == [0, 2, 1, 3, 4]
    assert mirrored(names, []).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"data\.keypoint_flips names 'ear', but the keypoints are nose, oeil_g"):
        mirrored(names, [("ear", "nose")])
    with pytest.raises(UserError, match="names 'nose' 2 times"):
        mirrored(names, [("nose", "oeil_g"), ("nose", "oeil_d")])
    with pytest.raises(UserError, match="names 'nose' 2 times"):
        mirrored(names, [("nose", "nose")])
    with pytest.raises(UserError, match="the dataset has no keypoints"):
        mirrored([], [("a", "b")])


def test_what_changes_places_is_said() -> None:
    assert describe_flips(["nose", "l_eye", "r_eye"]) == [
        "keypoints that change places in a flip: l_eye and r_eye; 1 stay in place"
    ]
    assert describe_flips(["a", "b", "c"], [("a", "c")]) == [
        "keypoints that change places in a flip: a and c; 1 stay in place"
    ]
    assert describe_flips(COCO_KEYPOINTS)[1:] == []
    assert describe_flips(["nose", "upper_lip", "lower_lip", "point_1", "point_2", "bright"])[1:] == []


@pytest.mark.parametrize(
    "names", [("oeil_g", "oeil_d"), ("eye links", "eye rechts"), ("leye", "reye"), ("eyel", "eyer"), ("A hip", "B hip")]
)
def test_pairs_that_are_not_recognised_are_warned_of(names: tuple[str, str]) -> None:
    (warning,) = describe_flips(["left_ear", "right_ear", "nose", *names])[1:]
    assert warning.startswith(f"warning: keypoints '{names[0]}' and '{names[1]}' stay in place")
    assert "data.keypoint_flips" in warning


def test_a_side_without_its_counterpart_is_warned_of() -> None:
    (warning,) = describe_flips(["nose", "leftEye"])[1:]
    assert warning.startswith("warning: keypoint 'leftEye' stays in place in a flip, as none is its counterpart")


def test_each_pair_is_found_once() -> None:
    assert find_pairs(["r_eye", "nose", "l_eye"]) == [("r_eye", "l_eye")]
