"""`evaluate_model` without a model: what is detected comes from a stub."""

import functools
import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from mask_rcnn_jax.data import CocoDataset, DataConfig
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation import EvaluationConfig, EvaluationResult, evaluate_model, run
from mask_rcnn_jax.inference import predict
from mask_rcnn_jax.models import MaskRCNNConfig, Variables
from mask_rcnn_jax.structures import EvalBatch, PaddedDetections
from tests.evaluation.scenes import SIDE, dataset_of, detections_in

DATA = DataConfig(short_side=(32,), short_side_eval=32, max_side=32, canvas=(32, 32), broken_images="skip")


@pytest.fixture
def dataset(tmp_path) -> CocoDataset:
    """Three images with one object each."""
    dataset = dataset_of([[[0, 0, 99, 99]]] * 3)
    for record in dataset.records:
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / f"{record.image_id}.png")
    records = [replace(record, path=str(tmp_path / f"{record.image_id}.png")) for record in dataset.records]
    return replace(dataset, records=records)


def evaluated(dataset: CocoDataset, monkeypatch, data: DataConfig = DATA) -> EvaluationResult:
    """Of a model that finds everything."""
    by_id = {record.image_id: record for record in dataset.records}

    def perfect(model: object, variables: object, batches: Iterable[EvalBatch], **_: object):
        for batch in batches:
            for image_id in batch.image_ids[batch.valid].tolist():
                yield detections_in(by_id[image_id])

    monkeypatch.setattr(run, "predict", perfect)
    model = MaskRCNNConfig(num_classes=len(dataset.class_names))
    return evaluate_model(model, data, EvaluationConfig(), Variables({}, {}), dataset)


def test_broken_images_count_neither_for_the_model_nor_against_it(dataset, monkeypatch) -> None:
    whole = evaluated(dataset, monkeypatch)
    assert whole.metrics["bbox/AP"] == pytest.approx(1)
    assert (whole.left_out, whole.dataset) == ((), dataset)
    path = Path(dataset.records[1].path)
    path.write_bytes(path.read_bytes()[:-40])
    rest = evaluated(dataset, monkeypatch)
    assert rest.metrics["bbox/AP"] == pytest.approx(1)
    assert [record.image_id for record in rest.dataset.records] == [dataset.records[i].image_id for i in (0, 2)]
    (line,) = rest.left_out
    assert "1 images turned out unreadable" in line
    assert str(path) in line
    with pytest.raises(UserError, match="cannot be read"):
        evaluated(dataset, monkeypatch, replace(DATA, broken_images="fail"))


def test_results_have_what_heads_of_others_say(dataset, monkeypatch) -> None:
    """Of the classes that the dataset has."""

    def three(config: object, variables: object, images: jax.Array, image_sizes: jax.Array) -> PaddedDetections:
        boxes, scores = jnp.array([[0.0, 0, 9, 9], [5, 5, 30, 30], [0, 0, 32, 32]]), jnp.array([0.75, 0.5, 0.25])
        extras = {"depth": jnp.array([1, jnp.nan, jnp.inf])}
        of_image = PaddedDetections(boxes, scores, jnp.array([1, 0, 1]), None, jnp.ones(3, bool), extras=extras)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(images), *x.shape)), of_image)

    monkeypatch.setattr(run, "predict", functools.partial(predict, detect=three))
    names = [*dataset.class_names, "other"]
    result = evaluate_model(MaskRCNNConfig(num_classes=2), DATA, EvaluationConfig(), Variables({}, {}), dataset, names)
    found = [(r["image_id"], r["category_id"], r["score"], r["depth"]) for r in result.results]
    assert found == [(record.image_id, dataset.categories[0], 0.5, None) for record in dataset.records]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_canvases_change_no_result(tmp_path, monkeypatch, batch_size) -> None:
    """Of a model that finds what a colour says, in images of many sizes."""
    sizes = [(height, width) for height, width in itertools.product((40, 48, 60, 96), (48, 64, 80))]
    dataset = dataset_of([[[0, 0, width, height]] for height, width in sizes])
    records = []
    for record, (height, width) in zip(dataset.records, sizes, strict=True):
        path = tmp_path / f"{record.image_id}.png"
        Image.new("RGB", (width, height), (40 + record.image_id, 0, 0)).save(path)
        records.append(replace(record, path=str(path), height=height, width=width))
    dataset, shapes = replace(dataset, records=records), []

    def whole(config: object, variables: object, images: jax.Array, image_sizes: jax.Array) -> PaddedDetections:
        shapes.append(images.shape)
        sides = image_sizes[:, None, ::-1].astype(jnp.float32)
        boxes = jnp.concatenate([jnp.zeros_like(sides), sides], axis=-1)
        mean = images[..., 0].sum(axis=(1, 2), dtype=jnp.float32)[:, None] / sides.prod(axis=2)
        of_all = jnp.ones((len(images), 1), bool)
        return PaddedDetections(boxes, mean / 255, jnp.zeros_like(of_all, jnp.int32), None, of_all)

    monkeypatch.setattr(run, "predict", functools.partial(predict, detect=whole))
    one = replace(DATA, short_side_eval=32, max_side=80, canvas=(32, 96))
    several = replace(one, smaller_canvases_eval=((32, 32), (32, 64)))
    found = []
    for data in (one, several):
        settings = EvaluationConfig(images_per_device=batch_size)
        monkeypatch.setattr(jax, "local_device_count", lambda: 1)
        result = evaluate_model(MaskRCNNConfig(num_classes=1), data, settings, Variables({}, {}), dataset)
        found.append((result.metrics, sorted(result.results, key=lambda entry: entry["image_id"])))
    assert len(set(shapes)) == len(shapes)
    assert len({shape[1:] for shape in shapes}) > 2
    assert found[0] == found[1]
    assert found[0][0]["bbox/AP"] == pytest.approx(1)
    for record, entry in zip(dataset.records, found[0][1], strict=True):
        assert entry["bbox"] == pytest.approx([0, 0, record.width, record.height], abs=1e-4)
        assert entry["score"] == pytest.approx((40 + record.image_id) / 255, abs=1e-4)


def test_nothing_but_broken_images_is_an_error(dataset, monkeypatch) -> None:
    for record in dataset.records:
        Path(record.path).write_bytes(b"spoilt")
    with pytest.raises(UserError, match="none of its images can be read"):
        evaluated(dataset, monkeypatch)
