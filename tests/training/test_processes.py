"""Two real processes with four devices each, joined over loopback, train and evaluate as this one does."""

import json
import re

import pytest

from mask_rcnn_jax.cli.main import main
from tests.training.two_processes import finish, metrics, start, train_options

# Each process keeps the other waiting once, for longer than the 30 s in which a connection is tried.
LATE = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from mask_rcnn_jax import processes
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.step import make_mesh

with processes.joined(sys.argv[2], 2, int(sys.argv[6])):
    sharding = NamedSharding(make_mesh(ExperimentConfig(batch_size=4)), P("data"))
    time.sleep(40 * jax.process_index())
    assert processes.gather(jax.process_index()) == [0, 1]
    time.sleep(40 * (1 - jax.process_index()))
    assert jnp.sum(jax.make_array_from_callback((4,), sharding, lambda _: np.ones(1))) == 4
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the same run by this process, on as many devices, and by two."""
    folder = tmp_path_factory.mktemp("processes")
    started = start(["train.py", *train_options(folder, "two")], folder)
    assert finish(started, folder) == [0, 0], (folder / "output0.txt").read_text()
    assert main(["train", *train_options(folder, "one")]) == 0
    return folder


def test_two_processes_train_as_one(runs):
    one, two = metrics(runs / "one"), metrics(runs / "two")
    assert len(one) == len(two) == 3  # two steps and an evaluation
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


def test_the_second_process_writes_and_says_nothing(runs):
    assert "step 1/2" in (runs / "output0.txt").read_text()
    # Gloo reports each connection, from a thread for each device, so that sentences may stand within one another.
    gloo = "[Gloo] Rank 1 is connected to 7 peer ranks. Expected number of connected peer ranks is : 7"
    said = (runs / "output1.txt").read_text()
    assert set(re.findall("[A-Za-z]+", said)) <= set(re.findall("[A-Za-z]+", gloo)), said


@pytest.mark.slow
def test_two_processes_evaluate_each_image_once(runs, tmp_path):
    command = ["--workdir", str(runs / "two"), "--checkpoint", "latest", "--pictures", "0", "--out"]
    started = start(["eval.py", *command, str(tmp_path / "two")], tmp_path)
    assert finish(started, tmp_path) == [0, 0], (tmp_path / "output0.txt").read_text()
    assert main(["eval", *command, str(tmp_path / "one")]) == 0
    found = [json.loads((tmp_path / name / "detections.json").read_text()) for name in ("one", "two")]
    one, two = (sorted(detections, key=lambda x: (x["image_id"], -x["score"])) for detections in found)
    assert [x["image_id"] for x in one] == [x["image_id"] for x in two]
    assert [x["score"] for x in one] == pytest.approx([x["score"] for x in two], rel=1e-5)


@pytest.mark.slow
def test_a_process_may_be_late(tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    started = start([str(tmp_path / "late.py")], tmp_path)
    assert finish(started, tmp_path) == [0, 0], (tmp_path / "output0.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "2"], "--coordinator, --processes and --process belong together"),
        (["--coordinator", "localhost:1", "--processes", "2", "--process", "2"], "--process 2 must be from 0 to"),
    ],
)
def test_mistakes_are_named(options, message, capsys):
    assert main(["train", *options]) == 2
    assert message in capsys.readouterr().err
