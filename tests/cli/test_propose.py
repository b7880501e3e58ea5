"""`mask-rcnn propose`: the same boxes every time, in a file that data take, with their recall."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn_jax.cli.data import propose as propose_command
from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.data import DataConfig, ShapesConfig, with_proposals
from mask_rcnn_jax.data.proposals.selective_search import SelectiveSearch
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.evaluation.recall import proposal_recall


@pytest.fixture
def source(tmp_path):
    source = ShapesConfig(str(tmp_path / "shapes"), num_train=3, num_val=1, image_size=64, max_shapes=3)
    source.prepare()
    return source


def propose(source, out, *options):
    return main(["propose", "--data", source.root, "--split", "train", "--out", str(out), "--workers", "1", *options])


def test_what_it_finds_covers_the_shapes_and_is_the_same_again(source, tmp_path, capsys):
    pytest.importorskip("cv2", reason="needs the extra `proposals`")
    out = tmp_path / "train.npz"
    assert propose(source, out, "--most", "60") == 0
    printed = capsys.readouterr().out
    dataset = with_proposals(source.load("train"), out, 100)
    assert not [what for what in dataset.problems if "proposals" in what]
    search = SelectiveSearch(most=60)
    for record in dataset.records:
        found = search(record)
        np.testing.assert_array_equal(record.proposals.boxes, found.boxes)
        np.testing.assert_array_equal(record.proposals.scores, found.scores)
        assert 0 < len(found.boxes) <= 60
    recall, average = proposal_recall((record, record.proposals) for record in dataset.records)
    assert recall[0] > 0.7
    first = re.search(r"^ +100 +(\S+) +(\S+)$", printed, re.MULTILINE)
    assert [float(number) for number in first.groups()] == pytest.approx([recall[0], average[0]], abs=6e-4)


def test_boxes_are_in_pixels_of_the_image_and_not_of_the_search(source):
    pytest.importorskip("cv2", reason="needs the extra `proposals`")
    (record, *_) = source.load("val").records
    assert SelectiveSearch(side=32)(record).boxes.max() == 64


def test_one_image_that_cannot_be_read_costs_the_others_nothing(source, tmp_path, capsys):
    pytest.importorskip("cv2", reason="needs the extra `proposals`")
    (record, *rest) = source.load("train").records
    path = Path(record.path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255  # whole by its header and its end
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        SelectiveSearch()(record)
    skip = SelectiveSearch(data=DataConfig(broken_images="skip"))
    assert len(skip(record).boxes) == 0
    assert len(skip(rest[0]).boxes) > 0


def test_images_that_share_an_id_are_said_before_the_search(source, tmp_path, monkeypatch, capsys):
    pytest.importorskip("cv2", reason="needs the extra `proposals`")
    file = Path(source.root) / "annotations" / "instances_train.json"
    dataset = source.load("train")
    twice = replace(dataset, records=[dataset.records[0]] * 2)
    monkeypatch.setattr(propose_command, "verify_images", lambda *_: twice)
    monkeypatch.setattr(propose_command, "search_all", None)
    assert propose(source, tmp_path / "train.npz") == 2
    assert f"{file} has image ids that repeat" in capsys.readouterr().err


def test_what_is_missing_is_said_before_anything_is_read(source, tmp_path, monkeypatch, capsys):
    assert propose(source, tmp_path / "train.pkl") == 2
    assert "train.pkl: name a file that ends in .npz" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert propose(source, tmp_path / "train.npz") == 2
    assert "pip install 'mask-rcnn-jax[proposals]'" in capsys.readouterr().err
    assert not (tmp_path / "train.npz").exists()
