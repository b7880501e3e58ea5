"""The predictor against evaluation on the same images, and images of every kind and size."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mask_rcnn_jax
from mask_rcnn_jax.data import DataConfig, ShapesConfig
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import EvaluationConfig, evaluate_model
from mask_rcnn_jax.inference import Detections, Predictor, predict
from mask_rcnn_jax.inference.predictor import canvases
from mask_rcnn_jax.structures import PaddedDetections
from tests.inference.small import DATA, noise, small_model

BATCH = jax.device_count()
WIDE = replace(DATA, canvas=(64, 96), max_side=96)
SEVERAL = replace(WIDE, canvas=(64, 128), max_side=128, smaller_canvases_eval=((64, 64), (64, 96)))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(small_model(), batch_size=BATCH)


@pytest.fixture
def traced(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of images for which a detector was compiled that finds the image itself, and compiles fast.

    The score is the first pixel's red; the class, its green.
    """
    shapes = []

    def whole_image(config, variables, images, image_sizes) -> PaddedDetections:
        shapes.append(images.shape)
        sides = image_sizes[:, None, ::-1].astype(jnp.float32)
        first = images[:, 0, :1].astype(jnp.float32)
        boxes = jnp.concatenate([jnp.zeros_like(sides), sides], axis=-1)
        valid = jnp.ones((len(images), 1), bool)
        return PaddedDetections(boxes, first[..., 0] / 255, first[..., 1].astype(jnp.int32), None, valid)

    monkeypatch.setattr("mask_rcnn_jax.inference.predictor.predict", functools.partial(predict, detect=whole_image))
    return shapes


def marked(height: int, width: int, mark: int) -> np.ndarray:
    return np.full((height, width, 3), [mark, 1, 0], np.uint8)


def same(a: Detections, b: Detections) -> None:
    assert (a.height, a.width, a.rles) == (b.height, b.width, b.rles)
    for name in ("boxes", "scores", "classes"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)


@pytest.mark.parametrize("resize", ["detectron2", "torchvision"])
def test_equals_evaluation(tmp_path, resize) -> None:
    source = ShapesConfig(root=str(tmp_path / "shapes"), num_train=1, num_val=5, image_size=80, max_shape_size=40)
    source.prepare()
    dataset = source.load("val")
    model = small_model(replace(DATA, resize=resize))
    evaluation = EvaluationConfig(images_per_device=1)
    expected = evaluate_model(model.config, model.data, evaluation, model.variables, dataset).results
    paths = [Path(record.path) for record in dataset.records]
    found = Predictor(model, batch_size=BATCH)(paths)
    results = [
        entry
        for record, detections in zip(dataset.records, found, strict=True)
        for entry in detections.to_coco(record.image_id, dataset.categories)
    ]
    assert len(results) > 20
    assert results == expected
    assert [detections.path for detections in found] == [str(path) for path in paths]


def test_an_image_is_the_same_however_it_is_given(predictor, tmp_path) -> None:
    image = noise(50, 70)
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = predictor(image)
    assert len(expected) > 0
    assert expected.path is None
    with Image.open(tmp_path / "a.png") as opened:
        for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), opened):
            same(predictor(given), expected)
    transparent = np.concatenate([image, np.full((50, 70, 1), 9, np.uint8)], axis=2)
    same(predictor(transparent), expected)
    same(predictor(image.astype(np.uint16) * 257), expected)
    gray = image[..., :1]
    same(predictor(gray), predictor(gray.repeat(3, axis=2)))
    same(predictor(gray[..., 0]), predictor(gray))


def test_a_turned_picture_is_seen_as_it_is_displayed(predictor, tmp_path) -> None:
    image = Image.fromarray(noise(50, 70))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    expected = predictor(np.rot90(np.asarray(image), -1))
    assert (expected.height, expected.width) == (70, 50)
    same(predictor(tmp_path / "turned.png"), expected)
    with Image.open(tmp_path / "turned.png") as opened:
        same(predictor(opened), expected)


def test_results_do_not_depend_on_the_rest_of_the_batch(predictor) -> None:
    images = [noise(*size, seed=i) for i, size in enumerate([(50, 70), (70, 50), (64, 64)])]
    for image, found in zip(images, predictor(images), strict=True):
        same(predictor(image), found)


@pytest.mark.parametrize("data", [WIDE, SEVERAL])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_images_of_mixed_canvases_come_back_in_order(traced, batch_size, data) -> None:
    rng = np.random.default_rng(batch_size)
    sizes = [tuple(size) for size in rng.integers(20, 90, (40, 2)).tolist()]
    predictor = Predictor(small_model(data), batch_size=batch_size)
    found = predictor([marked(*size, i) for i, size in enumerate(sizes, 100)])
    assert [(each.height, each.width) for each in found] == sizes
    assert [round(float(each.scores[0]) * 255) for each in found] == [*range(100, 140)]
    assert predictor([]) == []
    # Two orientations of each canvas; a square has one.
    assert len(traced) == len(set(traced)) <= (2 if data == WIDE else 5)


def test_an_image_takes_its_canvas_whatever_comes_with_it(traced) -> None:
    predictor = Predictor(small_model(SEVERAL), batch_size=4)
    images = [marked(64, width, 10) for width in (64, 90, 120)]
    for given in (*([image] for image in images), images):
        predictor(given)
    assert predictor.shapes == [(4, 64, 64), (4, 64, 96), (4, 64, 128)]


def test_no_more_rows_are_run_than_a_call_needs(traced, monkeypatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    predictor, image, devices = Predictor(small_model()), marked(50, 70, 200), jax.local_device_count()
    sizes = {1: [image], devices: [image, image], 4 * devices: iter([image])}  # the last is of unknown length
    for number, images in enumerate(sizes.values(), 1):
        assert len(list(predictor.stream(images))) <= 2
        assert [size for size, *_ in predictor.shapes] == list(sizes)[:number]


def test_a_stream_is_read_as_it_is_used(traced) -> None:
    read = []

    def images():
        for i in range(100):
            read.append(i)
            # The other orientation comes once, and must not be kept waiting until the end.
            yield marked(70, 50, 200) if i == 2 else marked(50, 70, 200)

    stream = Predictor(small_model(WIDE), batch_size=4).stream(images())
    for i in range(40):
        assert next(stream).height == (70 if i == 2 else 50)
    assert len(read) < 75
    stream.close()
    assert len(read) < 75


def test_threads_prepare_and_run_at_once(traced) -> None:
    predictor = Predictor(small_model(WIDE), batch_size=2)
    images = [marked(64, 96, 10), marked(96, 64, 20), marked(40, 60, 30)]
    expected = [round(mark / 255, 6) for mark in (10, 20, 30)]

    def work(_: int) -> list[float]:
        return [round(float(found.scores[0]), 6) for found in predictor.run([predictor.prepare(i) for i in images])]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(16))) == [expected] * 16
    assert predictor.run([]) == []


def test_an_image_alone_waits_for_no_other(traced) -> None:
    """As from a camera: each is answered before the next is there."""
    predictor, asked = Predictor(small_model(), batch_size=4), []

    def camera() -> Iterator[np.ndarray]:
        for mark in (10, 20):
            asked.append(mark)
            yield marked(64, 64, mark)

    for mark, image in zip((10, 20), camera(), strict=True):
        assert predictor(image).scores[0] == pytest.approx(mark / 255)
        assert asked[-1] == mark


def test_sizes_share_a_few_programs(traced) -> None:
    data = replace(WIDE, max_side=400)
    predictor = Predictor(small_model(data), batch_size=1)
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in rng.integers(1, 300, (60, 2)).tolist()] + [(1, 1), (1, 500), (700, 1), (64, 400)]
    found = predictor([marked(*size, 200) for size in sizes])
    assert [(each.height, each.width) for each in found] == sizes
    for (height, width), each in zip(sizes, found, strict=True):
        np.testing.assert_allclose(each.boxes, [[0, 0, width, height]], rtol=1e-6)
    allowed = canvases(data, 32)
    assert allowed == [(64, 96), (64, 192), (64, 384), (64, 416)]
    assert len(traced) == len(set(traced)) == predictor.compilations
    assert traced[0] in [(*shape, 3) for shape in predictor.shapes]
    assert {shape[1:] for shape in predictor.shapes} <= {*allowed, *(canvas[::-1] for canvas in allowed)}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (DataConfig(), [(832, 1344)]),
        (replace(WIDE, canvas_eval=(64, 64)), [(64, 64), (64, 96)]),
        (replace(SEVERAL, max_side=200), [(64, 64), (64, 96), (64, 128), (64, 224)]),
        (replace(WIDE, canvas=(32, 32), short_side_eval=50), [(32, 32), (64, 64), (64, 96)]),
    ],
)
def test_canvases_hold_any_image(data, expected) -> None:
    assert canvases(data, 32) == expected


def test_a_higher_threshold_leaves_out_the_rest_and_compiles_nothing(predictor) -> None:
    image = noise(50, 70)
    everything = predictor(image)
    middle = float(np.median(everything.scores))
    strict = Predictor(predictor.model, batch_size=BATCH, score_threshold=middle)
    same(strict(image), everything.take(everything.scores > middle))
    assert strict._config == predictor._config


def test_errors_go_to_the_handler_and_the_rest_is_found(predictor, tmp_path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    good, bad = noise(50, 70), [tmp_path / "text.png", tmp_path / "missing.png", np.zeros((3, 3, 7), np.uint8)]
    wrong = []
    images = [good, bad[0], good, bad[1], bad[2], good]
    found = list(predictor.stream(images, lambda image, error: wrong.append((image, str(error)))))
    assert len(found) == 3
    assert [image for image, _ in wrong] == bad
    for (_, message), part in zip(
        wrong, ["text.png cannot be read", "missing.png does not exist", "(3, 3, 7)"], strict=True
    ):
        assert part in message
    with pytest.raises(UserError, match="cannot be read"):
        predictor(images)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_that_are_no_image_are_described(predictor, array) -> None:
    with pytest.raises(UserError, match="is no image; give uint8"):
        predictor(array)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path) -> None:
    predictor = Predictor(small_model(replace(DATA, max_pixels=100)))
    Image.new("L", (11, 10)).save(tmp_path / "large.png")
    with Image.open(tmp_path / "large.png") as opened:
        for image in (tmp_path / "large.png", opened):
            with pytest.raises(UserError, match="11 x 10"):
                predictor(image)


@pytest.mark.parametrize("settings", [{"score_threshold": 1.5}, {"batch_size": 0}])
def test_settings_are_checked(settings) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        Predictor(small_model(), **settings)


def test_a_model_without_masks(traced) -> None:
    found = Predictor(small_model())(marked(50, 70, 200))
    assert len(found) == 1
    assert found.rles is None
    assert found.masks is None


def test_the_package_offers_it() -> None:
    assert mask_rcnn_jax.Predictor is Predictor
    assert mask_rcnn_jax.Detections is Detections
    with pytest.raises(AttributeError):
        mask_rcnn_jax.nothing  # noqa: B018
