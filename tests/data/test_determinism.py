"""The batch of a step depends on the seed and the step alone: not on workers, hosts, restarts, or broken images."""

import itertools
import json
import multiprocessing
import operator
import os
import signal
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mask_rcnn_jax.config import to_json
from mask_rcnn_jax.data import (
    CocoConfig,
    ColorJitterConfig,
    DataConfig,
    LargeScaleJitterConfig,
    eval_batches,
    read_image,
    train_batches,
    verify_images,
)
from mask_rcnn_jax.errors import UserError
from tests.data.test_augment import digest, scenes

ROOT = Path(__file__).parents[2]
EVERYTHING = DataConfig(
    CocoConfig(),
    canvas=(96, 96),
    max_instances=5,
    vertical_flip=0.3,
    rotate90=0.3,
    large_scale_jitter=LargeScaleJitterConfig(),
    color_jitter=ColorJitterConfig(),
    copy_paste=0.8,
    num_workers=0,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return scenes(tmp_path_factory.mktemp("scenes") / "data")


def joined(*shares):
    """The global batches of the shares of several processes."""
    return [jax.tree.map(lambda *rows: np.concatenate(rows), *parts) for parts in zip(*shares, strict=True)]


def test_any_number_of_workers_and_hosts_gives_the_same_batches(dataset):
    expected = list(train_batches(dataset, EVERYTHING, 4, 9, range(6)))
    assert len({digest([batch]) for batch in expected}) == 6
    for workers in (1, 3):
        config = replace(EVERYTHING, num_workers=workers)
        assert digest(train_batches(dataset, config, 4, 9, range(6))) == digest(expected), workers
    for count in (2, 4):
        shares = [list(train_batches(dataset, EVERYTHING, 4, 9, range(6), (index, count))) for index in range(count)]
        assert shares[0][0].inputs.images.shape[0] == 4 // count
        for whole, batch in zip(expected, joined(*shares), strict=True):
            jax.tree.map(np.testing.assert_array_equal, whole, batch)


def test_a_restart_at_any_step_goes_on_with_the_same_batches(dataset):
    expected = list(train_batches(dataset, EVERYTHING, 4, 9, range(6)))
    for start in (1, 3, 5):
        for index in range(2):
            rest = list(train_batches(dataset, EVERYTHING, 4, 9, range(start, 6), (index, 2)))
            half = [
                jax.tree.map(operator.itemgetter(slice(2 * index, 2 * index + 2)), batch) for batch in expected[start:]
            ]
            assert digest(rest) == digest(half)


HOST = """
import json, sys
import jax
import numpy as np
from mask_rcnn_jax.config import from_json
from mask_rcnn_jax.data import DataConfig, load_coco, train_batches
if __name__ == "__main__":
    root, settings, index, out = sys.argv[1:]
    config = from_json(DataConfig, json.loads(settings))
    batches = list(train_batches(load_coco(config.source, "train"), config, 4, 9, range(2, 5), (int(index), 2)))
    np.savez(out, *jax.tree.leaves(batches))
"""


def test_two_processes_each_with_two_workers(dataset, tmp_path):
    """Real processes, as on two hosts: each reads the dataset itself."""
    root = dataset.annotation_file.parents[1]
    config = replace(EVERYTHING, source=CocoConfig(str(root)), num_workers=2)
    script = tmp_path / "host.py"
    script.write_text(HOST)
    command = [sys.executable, str(script), str(root), json.dumps(to_json(config))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    hosts = [subprocess.Popen([*command, str(i), str(tmp_path / f"{i}.npz")], env=environment) for i in range(2)]
    assert [host.wait(120) for host in hosts] == [0, 0]
    shares = [np.load(tmp_path / f"{i}.npz") for i in range(2)]
    whole = jax.tree.leaves(list(train_batches(dataset, EVERYTHING, 4, 9, range(2, 5))))
    assert [len(share) for share in shares] == [len(whole)] * 2
    for name, value in zip(shares[0], whole, strict=True):
        np.testing.assert_array_equal(value, np.concatenate([share[name] for share in shares]))


def test_a_batch_must_divide_among_the_processes(dataset):
    with pytest.raises(UserError, match="batch_size 4 cannot be shared by 3 processes"):
        train_batches(dataset, EVERYTHING, 4, 0, range(1), (0, 3))


# --- Broken images ----------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """The same scenes, the third image cut short: its header is whole."""
    dataset = scenes(tmp_path / "data")
    path = Path(dataset.records[2].path)
    path.write_bytes(path.read_bytes()[:-400])
    return dataset


def test_a_broken_image_is_replaced_and_counted(broken):
    with pytest.raises(UserError, match=r"2\.png cannot be read"):
        list(train_batches(broken, EVERYTHING, 4, 9, range(6)))
    skip = replace(EVERYTHING, broken_images="skip")
    batches = list(train_batches(broken, skip, 4, 9, range(6)))
    assert sum(batch.replaced_images.sum() for batch in batches) > 0
    assert all((batch.image_ids != 2).all() for batch in batches)
    again = list(train_batches(broken, replace(skip, num_workers=2), 4, 9, range(6)))
    halves = [list(train_batches(broken, skip, 4, 9, range(6), (index, 2))) for index in range(2)]
    for one, two, three in zip(batches, again, joined(*halves), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)
        jax.tree.map(np.testing.assert_array_equal, one, three)


def test_a_broken_image_leaves_other_rows_alone(dataset, broken):
    config = replace(EVERYTHING, broken_images="skip", copy_paste=0.0)
    whole, rest = (list(train_batches(data, config, 4, 9, range(6))) for data in (dataset, broken))
    for one, two in zip(whole, rest, strict=True):
        same = two.replaced_images == 0
        rows_of_both = (jax.tree.map(operator.itemgetter(same), batch) for batch in (one, two))
        jax.tree.map(np.testing.assert_array_equal, *rows_of_both)


def test_a_replacement_has_the_orientation_of_its_batch(broken):
    config = replace(EVERYTHING, large_scale_jitter=None, short_side=(48,), canvas=(64, 128), broken_images="skip")
    for batch in train_batches(broken, config, 2, 0, range(12)):
        landscape = batch.inputs.images.shape[1] < batch.inputs.images.shape[2]
        assert ((batch.inputs.image_sizes[:, 0] <= batch.inputs.image_sizes[:, 1]) == landscape).all()


def test_a_broken_image_is_left_out_of_evaluation_and_said(broken):
    small = replace(EVERYTHING, short_side_eval=48, max_side=64)
    with pytest.raises(UserError, match=r"2\.png cannot be read"):
        list(eval_batches(broken, small, 2))
    said = {}
    skip = replace(small, broken_images="skip")
    batches = list(eval_batches(broken, skip, 2, lambda record, error: said.update({record.image_id: str(error)})))
    assert list(said) == [2]
    assert "2.png cannot be read" in said[2]
    assert sorted(i for batch in batches for i in batch.image_ids[batch.valid].tolist()) == [0, 1, 3, 4]
    whole = [row for batch in eval_batches(broken, skip, 1) for row in batch.images[batch.valid]]
    rows = [row for batch in batches for row in batch.images[batch.valid]]
    for one, two in zip(rows, whole, strict=True):
        np.testing.assert_array_equal(one, two)


def test_nothing_but_broken_images_is_an_error(broken):
    for record in broken.records:
        Path(record.path).write_bytes(b"spoilt")
    with pytest.raises(UserError, match="cannot be read"):
        next(train_batches(broken, replace(EVERYTHING, broken_images="skip"), 2, 0, range(1)))
    with pytest.raises(UserError, match=r"cannot be read.*\(5 images in all"):
        verify_images(broken, replace(EVERYTHING, broken_images="skip"))


def test_verification_leaves_broken_images_out_and_says_so(broken):
    with pytest.raises(UserError, match=r"2\.png cannot be read"):
        verify_images(broken, EVERYTHING)
    usable = verify_images(broken, replace(EVERYTHING, broken_images="skip"))
    assert [record.image_id for record in usable.records] == [0, 1, 3, 4]
    assert any("1 images that cannot be used, left out, e.g. Image" in line for line in usable.describe_problems())
    assert verify_images(usable, EVERYTHING) is usable
    list(train_batches(usable, EVERYTHING, 4, 9, range(3)))


def png_header(width, height):
    """A PNG that says it is so large, with hardly any pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 100))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_headers_that_ask_for_too_much_are_refused_before_decoding(broken, monkeypatch):
    record = broken.records[2]
    Path(record.path).write_bytes(png_header(60_000, 60_000))
    loaded = []
    monkeypatch.setattr(Image.Image, "load", lambda image: loaded.append(image))
    with pytest.raises(UserError, match=r"2\.png is 60000 x 60000 by its header, more than data\.max_pixels 400000000"):
        read_image(record.path)
    with pytest.raises(UserError, match=r"more than data\.max_pixels"):
        verify_images(broken, EVERYTHING)
    assert not loaded
    monkeypatch.undo()
    usable = verify_images(broken, replace(EVERYTHING, broken_images="skip"))
    assert len(usable.records) == 4
    tight = replace(EVERYTHING, max_pixels=60 * 80 - 1)
    with pytest.raises(UserError, match=r"is \d\d x \d\d by its header, more than data\.max_pixels 4799"):
        next(train_batches(usable, tight, 4, 9, range(1)))


def test_a_killed_worker_is_an_error_and_no_hang(dataset):
    before = multiprocessing.active_children()
    batches = train_batches(dataset, replace(EVERYTHING, num_workers=2), 4, 0, range(10_000))
    next(batches)
    worker = next(child for child in multiprocessing.active_children() if child not in before)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"process that loads data was ended from outside.*exit code -9"):
        list(itertools.islice(batches, 100))
    batches.close()
