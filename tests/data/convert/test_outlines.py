"""VIA and LabelMe: outlines cover what an independent raster of them covers."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.data.convert.known import (
    HEIGHT,
    WIDTH,
    block,
    convert,
    inside,
    iou,
    load,
    masks,
    named,
    pixel_centres,
    write_image,
    write_json,
)

KITE = [(40, 5), (70, 30), (40, 55), (25, 30)]
NOTCHED = [(5, 5), (35, 5), (35, 35), (20, 20), (5, 35)]  # not convex


def ellipse(centre_x, centre_y, radius_x, radius_y, turn=0.0):
    """Pixels whose centre satisfies the ellipse's equation."""
    x, y = pixel_centres()
    x, y = x - centre_x, y - centre_y
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return (along / radius_x) ** 2 + (across / radius_y) ** 2 <= 1


def via_polygon(corners):
    return {"name": "polygon", "all_points_x": [x for x, _ in corners], "all_points_y": [y for _, y in corners]}


VIA_SHAPES = [
    (via_polygon(KITE), inside(KITE)),
    ({"name": "rect", "x": 10, "y": 20, "width": 30, "height": 15}, block(20, 10, 35, 40)),
    ({"name": "circle", "cx": 40, "cy": 30, "r": 17.5}, ellipse(40, 30, 17.5, 17.5)),
    ({"name": "ellipse", "cx": 40, "cy": 30, "rx": 30, "ry": 12, "theta": 0.4}, ellipse(40, 30, 30, 12, 0.4)),
    ({"name": "ellipse", "cx": 40, "cy": 30, "rx": 30, "ry": 12}, ellipse(40, 30, 30, 12)),
]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("project", [False, True])
def test_via_shapes(tmp_path, version, project):
    regions = [
        {"shape_attributes": shape, "region_attributes": {"kind": "cat" if index else " dog "}}
        for index, (shape, _) in enumerate(VIA_SHAPES)
    ]
    listed = regions if version == 2 else {str(index): region for index, region in enumerate(regions)}
    content = {
        "a.jpg123": {"filename": "a.jpg", "size": 123, "regions": listed, "file_attributes": {}},
        "b.jpg456": {
            "filename": "b.jpg",
            "size": 456,
            "regions": listed if version == 1 else [],
            "file_attributes": {},
        },
    }
    write_image(tmp_path / "in" / "a.jpg")
    write_image(tmp_path / "in" / "b.jpg")
    file = write_json(tmp_path / "in" / "via.json", {"_via_img_metadata": content} if project else content)
    assert convert("via", file, "--out", tmp_path / "out") == 0
    dataset = load(tmp_path / "out")
    assert dataset.class_names == ("cat", "dog")
    record = dataset.records[0]
    assert named(dataset, record) == ["dog", "cat", "cat", "cat", "cat"]
    assert len(dataset.records[1].boxes) == (5 if version == 1 else 0)
    for mask, box, area, (_, expected) in zip(masks(record), record.boxes, record.areas, VIA_SHAPES, strict=True):
        assert iou(mask, expected) > 0.97
        assert area == mask.sum()
        ys, xs = np.nonzero(expected)
        np.testing.assert_allclose(box, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1)
    np.testing.assert_array_equal(masks(record)[1], VIA_SHAPES[1][1])  # along pixels' edges there is no rounding
    # Half-axes along x and y reach exactly that far.
    np.testing.assert_allclose(record.boxes[2], [22.5, 12.5, 57.5, 47.5], atol=0.1)


def via_file(folder, *regions, name="a.jpg"):
    write_image(folder / name)
    listed = [{"shape_attributes": shape, "region_attributes": attributes} for shape, attributes in regions]
    return write_json(folder / "via.json", {"k": {"filename": name, "size": 1, "regions": listed}})


def test_via_leaves_out_and_counts(tmp_path, capsys):
    good = VIA_SHAPES[0][0]
    via_file(
        tmp_path / "in",
        (good, {"kind": "cat"}),
        ({**good, "name": "polyline"}, {"kind": "cat"}),
        ({"name": "point", "cx": 3, "cy": 4}, {"kind": "cat"}),
        (good, {"kind": ""}),
        (good, {}),
        (good, {"kind": {"cat": True, "dog": True}}),
        (good, {"kind": {"cat": False, "dog": True}}),
        ({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}, {"kind": "cat"}),
        ({"name": "polygon", "all_points_x": [1, 9], "all_points_y": [1, 9]}, {"kind": "cat"}),
        (via_polygon([(200, 5), (220, 5), (210, 9)]), {"kind": "cat"}),
        ({"name": "rect", "x": 70, "y": 50, "width": 40, "height": 40}, {"kind": "dog"}),
        ({"name": "circle", "cx": 5, "cy": 5, "r": None}, {"kind": "dog"}),
    )
    assert convert("via", tmp_path / "in", "--out", tmp_path / "out", "--all") == 0
    dataset = load(tmp_path / "out")
    record = dataset.records[0]
    assert named(dataset, record) == ["cat", "dog", "dog"]
    np.testing.assert_array_equal(record.boxes[2], [70, 50, 80, 60])
    np.testing.assert_array_equal(masks(record)[2], block(50, 70, 60, 80))
    printed = capsys.readouterr().out
    for line in (
        "1 regions of shape 'polyline', which outline nothing, left out",
        "1 regions of shape 'point', which outline nothing, left out",
        "2 regions without a class in 'kind', left out",
        "1 regions with several classes in 'kind', left out",
        "1 regions of shape 'polygon' with broken coordinates, left out",
        "1 regions of shape 'circle' with broken coordinates, left out",
        "1 polygons with fewer than three points, left out",
        "2 objects that cover no pixel of their image, left out",
        "2 polygons that reach outside their image, cut at its edges",
        "via.json, image a.jpg, region 11",
    ):
        assert line in printed


def test_via_of_other_types(tmp_path, capsys):
    file = via_file(
        tmp_path / "in",
        (VIA_SHAPES[0][0], {"kind": "cat"}),
        ({"name": "polygon", "all_points_x": "123", "all_points_y": "456"}, {"kind": "cat"}),
        ({"name": "circle", "cx": 5, "cy": 5, "r": 1e300}, {"kind": "cat"}),
        ({"name": "circle", "cx": 5, "cy": 5, "r": 10**400}, {"kind": "cat"}),
        ({"name": ["circle"]}, {"kind": "cat"}),
        (VIA_SHAPES[0][0], {"kind": ["cat"]}),
        (VIA_SHAPES[0][0], {"kind": "\ud800"}),
        ({"name": "circle", "cx": 40, "cy": 30, "r": 1e8}, {"kind": "cat"}),
    )
    content = json.loads(file.read_text())
    content["k"]["regions"] += ["region", None]
    others = {"n": {"filename": None}, "l": {"filename": "a" * 2000}, "r": {"filename": "a.jpg", "regions": 5}}
    write_json(file, content | others | {"z": {"filename": "a\0.jpg"}})
    assert convert("via", file, "--out", tmp_path / "out", "--class-key", "kind", "--all") == 0
    printed = capsys.readouterr().out
    for line in (
        "1 regions of shape 'polygon' with broken coordinates, left out",
        "2 regions of shape 'circle' with broken coordinates, left out",
        "1 regions of shape '['circle']', which outline nothing, left out",
        "2 regions without a class in 'kind', left out",
        "2 regions that are no objects, left out",
        "2 entries without the name of an image, left out",
    ):
        assert line in printed
    assert masks(load(tmp_path / "out").records[0])[1].all()  # the circle that holds the image


def test_via_classes(tmp_path, capsys):
    good, out = VIA_SHAPES[0][0], tmp_path / "out"
    plain = via_file(tmp_path / "plain", (good, {}))
    assert convert("via", plain, "--out", out, "--class-name", "balloon") == 0
    assert load(out).class_names == ("balloon",)
    both = via_file(tmp_path / "both", (good, {"kind": "b", "note": "x"}), (good, {"kind": "a", "note": "x"}))
    assert convert("via", both, "--out", tmp_path / "other") == 2
    assert "have the attributes kind, note; say which with --class-key" in capsys.readouterr().err
    assert convert("via", both, "--out", tmp_path / "other", "--class-key", "kind", "--classes", "c,b") == 0
    dataset = load(tmp_path / "other")
    assert dataset.class_names == ("c", "b")
    assert named(dataset, dataset.records[0]) == ["b"]
    assert "1 objects of a class that --classes does not name, left out" in capsys.readouterr().out
    assert convert("via", both, "--out", tmp_path / "third", "--class-key", "colour") == 2
    assert "have only kind, note" in capsys.readouterr().err


def test_via_splits_and_other_folders(tmp_path):
    for split in ("train", "val"):
        via_file(tmp_path / "in" / split, (VIA_SHAPES[1][0], {}), name=f"{split}.jpg")
    assert convert("via", tmp_path / "in", "--out", tmp_path / "out") == 0
    assert load(tmp_path / "out", "val").records[0].path == str(tmp_path / "out" / "val" / "val.jpg")
    file = via_file(tmp_path / "away", (VIA_SHAPES[1][0], {}), name="b.jpg")
    (tmp_path / "away" / "b.jpg").rename(tmp_path / "b.jpg")
    assert convert("via", file, "--out", tmp_path / "two", "--images-dir", tmp_path) == 0
    assert len(load(tmp_path / "two").records) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"project": {}, "config": {}, "metadata": {}, "view": {}}, "is of VIA 3"),
        ({"a": 1}, "no export or project of VIA"),
        ([1], "holds no JSON object"),
    ],
)
def test_files_that_are_not_via(tmp_path, capsys, content, message):
    assert convert("via", write_json(tmp_path / "x.json", content), "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def labelme_shape(label, points, kind="polygon", group=None, **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": {}} | more


def labelme_file(path, *shapes, image="a.jpg", **more):
    content = {"version": "5.2.1", "flags": {}, "shapes": list(shapes), "imagePath": image, "imageData": None}
    return write_json(path, content | {"imageHeight": HEIGHT, "imageWidth": WIDTH} | more)


def encoded(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_labelme_shapes(tmp_path):
    patch = np.zeros((10, 12), bool)
    patch[2:, 3:] = True
    write_image(tmp_path / "in" / "a.jpg")
    labelme_file(
        tmp_path / "in" / "a.json",
        labelme_shape("kite", KITE),
        labelme_shape("box", [[40, 35], [10, 20]], "rectangle"),
        labelme_shape("disc", [[40, 30], [40, 47.5]], "circle"),
        labelme_shape("notched", NOTCHED),
        labelme_shape("notched", [[60, 40], [78, 40], [78, 58], [60, 58]], group=1),
        labelme_shape("notched", [[0, 50], [5, 50], [5, 58], [0, 58]], group=1),
        labelme_shape("box", [[0, 0], [8, 8]], "rectangle", group=1),
        labelme_shape("patch", [[30, 20], [41, 29]], "mask", mask=encoded(patch.astype(np.uint8) * 255)),
        {"label": "old", "points": [[1, 1], [9, 1], [9, 9]]},
    )
    assert convert("labelme", tmp_path / "in", "--out", tmp_path / "out") == 0
    dataset = load(tmp_path / "out")
    assert dataset.class_names == ("box", "disc", "kite", "notched", "old", "patch")
    record = dataset.records[0]
    assert named(dataset, record) == ["kite", "box", "disc", "notched", "notched", "box", "patch", "old"]
    found = masks(record)
    np.testing.assert_array_equal(found[1], block(20, 10, 35, 40))
    np.testing.assert_array_equal(found[4], block(40, 60, 58, 78) | block(50, 0, 58, 5))
    np.testing.assert_array_equal(record.boxes[4], [0, 40, 78, 58])
    np.testing.assert_array_equal(found[5], block(0, 0, 8, 8))
    np.testing.assert_array_equal(found[6], block(22, 33, 30, 42))
    for index, expected in ((0, inside(KITE)), (2, ellipse(40, 30, 17.5, 17.5)), (3, inside(NOTCHED))):
        assert iou(found[index], expected) > 0.96


def test_labelme_images(tmp_path, capsys):
    """Images lie beside, elsewhere, in Windows' folders, or in the JSON file itself; the EXIF orientation counts."""
    root, shape = tmp_path / "in", labelme_shape("a", KITE)
    write_image(root / "images" / "1.jpg")
    labelme_file(root / "json" / "1.json", shape, image="..\\images\\1.jpg")
    write_image(root / "2.png")
    labelme_file(root / "2.json", shape, image="../gone/2.png")
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    labelme_file(root / "3.json", shape, image="3.jpg", imageData=encoded(pixels))
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(root / "4.jpg", WIDTH, HEIGHT, exif=exif)
    labelme_file(root / "4.json", shape, image="4.jpg")
    labelme_file(root / "5.json", shape, image="5.jpg")
    write_image(root / "6.jpg", 30, 30)
    labelme_file(root / "6.json", shape, image="6.jpg")
    labelme_file(root / "7.json", shape, image="2.png")
    write_json(root / "8.json", {"images": []})
    (root / "9.json").write_text("{")
    labelme_file(root / "10.json", shape, image="10.jpg", imageData="no base64")
    assert convert("labelme", root, "--out", tmp_path / "out", "--all") == 0
    records = load(tmp_path / "out").records
    names = ["2.png", "3.png", "4.jpg", "images/1.jpg"]
    assert [record.path for record in records] == [str(tmp_path / "out" / "train" / name) for name in names]
    np.testing.assert_array_equal(np.asarray(Image.open(records[1].path)), pixels)
    printed = capsys.readouterr().out
    for line in (
        f"1 images that do not exist, left out:\n  {root}/5.jpg, named in {root}/5.json",
        "1 images of another size than annotated, left out",
        f"{root}/6.json: annotated 80 x 60, the image is 30 x 30",
        "1 further annotations of an image, left out:\n  2.png, in 7.json",
        f"1 JSON files that LabelMe did not write, left out:\n  {root}/8.json",
        "1 files that cannot be read, left out",
        "1 images that cannot be read, left out",
    ):
        assert line in printed


def test_labelme_leaves_out_and_counts(tmp_path, capsys):
    write_image(tmp_path / "in" / "a.jpg")
    labelme_file(
        tmp_path / "in" / "a.json",
        labelme_shape("a", KITE),
        labelme_shape("a", KITE, "linestrip"),
        labelme_shape("a", [[3, 3]], "point"),
        labelme_shape("", KITE),
        labelme_shape("a", [[1, 2], [3, "x"], [4, 5]]),
        labelme_shape("a", [[1, 2, 3]]),
        labelme_shape("a", [[5, 5], [5, 5]], "rectangle"),
    )
    assert convert("labelme", tmp_path / "in", "--out", tmp_path / "out") == 0
    assert len(load(tmp_path / "out").records[0].boxes) == 1
    printed = capsys.readouterr().out
    for line in (
        "1 shapes of type 'linestrip', which outline nothing, left out",
        "1 shapes of type 'point', which outline nothing, left out",
        "1 shapes without a label, left out",
        "2 shapes of type 'polygon' with broken coordinates, left out",
        "1 objects that cover no pixel of their image, left out",
    ):
        assert line in printed


def test_labelme_of_other_types(tmp_path, capsys):
    folder = tmp_path / "in"
    write_image(folder / "a.jpg")
    labelme_file(
        folder / "a.json",
        labelme_shape("a", KITE),
        labelme_shape(["a"], KITE),
        labelme_shape("\udfff", KITE),
        labelme_shape("a", "KITE"),
        labelme_shape("a", [], "mask", mask="AAAA"),
        labelme_shape("a", [], "circle"),
        labelme_shape("a", KITE, {"type": 1}),
        labelme_shape("a", [[-1e8, -1e8], [1e8, -1e8], [1e8, 1e8], [-1e8, 1e8]], group=[[1]]),
        "shape",
    )
    labelme_file(folder / "b.json", labelme_shape("a", KITE), image="b\0.jpg")
    labelme_file(folder / "c.json", labelme_shape("a", KITE), image="c" * 2000)
    labelme_file(folder / "d.json", labelme_shape("a", KITE), image="a.jpg", imageHeight=[[[[[[HEIGHT]]]]]])
    (folder / "e.json").write_text("[" * 100_000)
    assert convert("labelme", folder, "--out", tmp_path / "out", "--all") == 0
    (record,) = load(tmp_path / "out").records
    assert masks(record)[1].all()
    printed = capsys.readouterr().out
    for line in (
        "2 shapes without a label, left out",
        "1 shapes whose label holds half a character, left out",
        "1 shapes of type 'polygon' with broken coordinates, left out",
        "1 shapes of type 'mask' with broken coordinates, left out",
        "1 shapes of type 'circle' with broken coordinates, left out",
        "1 shapes of type '{'type': 1}', which outline nothing, left out",
        "1 JSON files that LabelMe did not write, left out",
        "1 images that do not exist, left out",
        "1 images of another size than annotated, left out",
        "it is nested too deeply",
    ):
        assert line in printed
