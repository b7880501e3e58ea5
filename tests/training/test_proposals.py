"""Fast R-CNN by the ordinary way: proposals from files, training, evaluation, and what ends in a sentence."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.data import BoxProposals, ProposalFilesConfig, write_proposals
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference import Predictor
from mask_rcnn_jax.models import GivenProposalsConfig
from mask_rcnn_jax.training import train
from mask_rcnn_jax.training.datasets import load_datasets
from tests.tiny import smallest_model, tiny_experiment


def write_near_boxes(path, records):
    """Boxes near the annotated ones, and as many anywhere."""
    rng, found = np.random.default_rng(0), []
    for record in records:
        near = np.repeat(record.boxes, 4, axis=0)
        near = near + rng.normal(0, 2, near.shape)
        corners = np.sort(rng.uniform(0, 64, (len(near), 2, 2)), axis=1).reshape(-1, 4)
        boxes = np.concatenate([near, corners]).astype(np.float32)
        found.append((record.image_id, BoxProposals(boxes, rng.uniform(size=len(boxes)).astype(np.float32))))
    with path.open("wb") as file:
        write_proposals(file, found)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a Fast R-CNN on shapes, which it tells apart by what is given."""
    root = tmp_path_factory.mktemp("given")
    model = replace(smallest_model(), rpn=GivenProposalsConfig(num_train=24, num_test=24))
    config = tiny_experiment(root, model=model, steps=24)
    config.data.source.prepare()
    for split in ("train", "val"):
        write_near_boxes(root / f"{split}.npz", config.data.source.load(split).records)
    files = ProposalFilesConfig(str(root / "{split}.npz"), str(root / "{split}.npz"), slots=24)
    config = replace(config, data=replace(config.data, proposals=files))
    return config, root / "run", train(config, root / "run")


def losses(workdir, name):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_it_learns_from_the_proposals_of_files(finished):
    _, workdir, metrics = finished
    total, classes = losses(workdir, "loss"), losses(workdir, "loss/box_class")
    assert len(total) == 24
    assert not losses(workdir, "loss/rpn_box")
    assert np.mean(total[-4:]) < np.mean(total[:4])
    assert np.mean(classes[-4:]) < 0.7 * np.mean(classes[:4])  # boxes are learnt later
    assert metrics["bbox/AP50"] > 0.1  # of random boxes about nothing


def test_eval_takes_the_files_of_the_run_or_others(finished, tmp_path, capsys):
    _, workdir, metrics = finished
    assert main(["eval", "--workdir", str(workdir), "--out", str(tmp_path / "eval"), "--pictures", "0"]) == 0
    written = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert written["bbox/AP"] == pytest.approx(metrics["bbox/AP"])
    none = ["--set", f"data.proposals.val={tmp_path / 'absent.npz'}"]
    assert main(["eval", "--workdir", str(workdir), "--out", str(tmp_path / "eval"), *none]) == 2
    assert "absent.npz: there is no such file of proposals" in capsys.readouterr().err
    none = ["--set", "data.proposals=none"]
    assert main(["eval", "--workdir", str(workdir), "--out", str(tmp_path / "eval"), *none]) == 2
    assert "data.proposals=ProposalFilesConfig data.proposals.train=FILE" in capsys.readouterr().err


def test_images_alone_have_no_proposals(finished, tmp_path, capsys):
    _, workdir, _ = finished
    (image, *_) = (workdir.parent / "shapes" / "val").glob("*")
    said = "the model is given its proposals (rpn is GivenProposalsConfig), and images alone have none"
    checkpoint = ["--checkpoint", str(workdir)]
    assert main(["predict", str(image), *checkpoint, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert main(["export", *checkpoint, "--out", str(tmp_path / "model.stablehlo")]) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="images alone have none"):
        Predictor.from_checkpoint(workdir)


def test_a_model_and_data_that_do_not_go_together_are_refused(finished, tmp_path):
    config, _, _ = finished
    without = replace(config, data=replace(config.data, proposals=None))
    with pytest.raises(UserError, match=r"model\.rpn is GivenProposalsConfig, and the data have no proposals; name"):
        load_datasets(without)
    with pytest.raises(UserError, match=r"model\.rpn is RPNConfig, which makes its own; set data\.proposals to none"):
        load_datasets(replace(config, model=smallest_model()))
