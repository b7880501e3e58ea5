"""`mask-rcnn reproduce`: the same run twice has the same bits, and what is not the same is told."""

import json
import shutil

import jax
import pytest

from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.training import train
from mask_rcnn_jax.training.runs.provenance import hash_metrics, repeatable_metrics
from mask_rcnn_jax.training.runs.reproduce import compare, differences
from tests.tiny import smallest_model, tiny_experiment


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    train(tiny_experiment(root, model=smallest_model(), ema_decay=0.5), root / "run")
    return root / "run"


def edit(path, change) -> None:
    """Applies `change` to each JSON line of a file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_is_repeated_bit_for_bit(finished, capsys):
    assert main(["reproduce", str(finished)]) == 0
    said = capsys.readouterr().out
    assert "code, packages, devices and data are those of the run" in said
    for name in ("parameters", "buffers", "average", "metrics"):
        assert f"{name}: the same bits" in said
    again = finished.with_name("run-reproduced")
    assert said.splitlines()[-1] == f"{finished} is reproduced: the same bits; the second run is in {again}"
    assert json.loads((again / "result.json").read_text()) == json.loads((finished / "result.json").read_text())
    assert main(["reproduce", str(finished)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_run_that_comes_out_otherwise_is_told(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    edit(run / "starts.jsonl", lambda start: start["packages"].update(jax="0.0.1"))
    edit(run / "metrics.jsonl", lambda line: line.update(loss=9.5) if line["step"] == 3 else None)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"parameters": "0" * 64, "metrics": "1" * 64}))
    assert main(["reproduce", str(run), "--out", str(tmp_path / "again")]) == 1
    said = capsys.readouterr().out
    assert f"differs: packages, jax: 0.0.1 then, {jax.__version__} now" in said
    assert said.index("differs: ") < said.index("step 1/4")  # before anything is trained
    assert "parameters: DIFFERENT (sha256 0000000000000000 then" in said
    assert "buffers: the same bits" in said
    assert "first difference: loss at step 3: 9.5 then" in said
    assert "NOT reproduced" in said.splitlines()[-1]


def test_another_file_of_a_class_from_outside_is_told(finished):
    (then,) = (json.loads(line) for line in (finished / "starts.jsonl").read_text().splitlines())
    assert then["extensions"] == {}
    now = then | {"extensions": {"Mine": "mine.py 1f"}}
    assert differences(now, now) == []
    told = ["extensions, Mine: mine.py 2e then, mine.py 1f now"]
    assert differences(then | {"extensions": {"Mine": "mine.py 2e"}}, now) == told
    del then["extensions"]  # as older versions recorded
    assert len(differences(then, now)) == 1


def came_to(folder, losses: dict[int, float], ap: float = 0.5, **result: str):
    """The folder of a run of six steps that reported `losses` by step, and evaluated at its end."""
    folder.mkdir()
    lines = [{"step": step, "loss": loss, "images_per_second": 1.0} for step, loss in losses.items()]
    lines.append({"step": 6, "segm/AP": ap})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "starts.jsonl").write_text('{"step": 0, "weights": "0"}\n')
    hashes = {"parameters": "1", "buffers": "2", "average": None, "metrics": hash_metrics(repeatable_metrics(folder))}
    (folder / "result.json").write_text(json.dumps({"step": 6} | hashes | result))
    return folder


@pytest.mark.parametrize(
    "reported",
    [
        {2: 0.75, 4: 0.5, 5: 0.25, 6: 0.125},  # log_every=1 after a stop at step 4
        {2: 0.75, 3: 0.625, 4: 0.375, 6: 0.1875},  # a stop at step 3, or checkpoint_every=3
        {6: 0.4375},  # nothing else to compare
    ],
)
def test_reports_of_other_steps_are_no_difference(tmp_path, reported):
    again = came_to(tmp_path / "again", {2: 0.75, 4: 0.5, 6: 0.1875})
    verdict = compare(came_to(tmp_path / "run", reported), again)
    assert verdict.same
    assert verdict.lines[-1].startswith("metrics: the same wherever both report of the same steps")


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ({"losses": {2: 0.75, 3: 1.0, 4: 9.5, 6: 0.1875}}, "first difference: loss at step 6: 0.1875 then, 0.25 now"),
        ({"losses": {2: 0.5, 6: 0.5}}, "first difference: loss at step 2: 0.5 then, 0.75 now"),
        ({"losses": {2: 0.75, 6: 0.5}, "ap": 0.25}, "first difference: segm/AP at step 6: 0.25 then, 0.5 now"),
        ({"losses": {2: 0.75, 6: 0.5}, "parameters": "3"}, "3 lines of metrics then, 4 now"),
        ({"losses": {2: 0.75, 6: 0.5}, "metrics": "3"}, "3 lines of metrics then, 4 now"),
    ],
)
def test_what_both_report_must_be_the_same(tmp_path, run, told):
    again = came_to(tmp_path / "again", {2: 0.75, 4: 0.5, 6: 0.25})
    verdict = compare(came_to(tmp_path / "run", **run), again)
    assert not verdict.same
    assert verdict.lines[-1] == told


def test_what_cannot_be_repeated_is_refused(finished, tmp_path, capsys):
    def refused(run) -> str:
        assert main(["reproduce", str(run), "--out", str(tmp_path / "again")]) == 2
        assert not (tmp_path / "again").exists()
        return capsys.readouterr().err

    assert "holds no finished run" in refused(tmp_path / "nowhere")
    run = shutil.copytree(finished, tmp_path / "run")
    edit(run / "starts.jsonl", lambda start: start["devices"].update(count=3))
    message = refused(run)
    assert f"was trained on 3 devices (cpu), and here are {len(jax.devices())}; set JAX_NUM_CPU_DEVICES=3" in message
    metrics = (run / "metrics.jsonl").rename(run / "elsewhere")
    assert "metrics.jsonl cannot be read" in refused(run)
    metrics.rename(run / "metrics.jsonl")
    (run / "starts.jsonl").unlink()
    assert "has no starts.jsonl" in refused(run)
    (run / "result.json").unlink()
    assert "holds no finished run (it has no result.json)" in refused(run)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("starts.jsonl", lambda start: start.update(code={"hash": 7}), "hash is of another type"),
        ("starts.jsonl", lambda start: start["devices"].pop("count"), "count is missing"),
        ("starts.jsonl", lambda start: start.update(packages=[]), "packages is no table"),
        ("starts.jsonl", lambda start: start["environment"].update(XLA_FLAGS=[]), "environment is no table of texts"),
        ("starts.jsonl", lambda start: start.update(step="0"), "starts.jsonl cannot be read"),
        ("result.json", lambda result: result.pop("parameters"), "parameters is missing"),
        ("metrics.jsonl", lambda line: line.update(loss=[1.0]), "metrics.jsonl cannot be read"),
    ],
)
def test_a_record_of_another_form_is_refused(finished, tmp_path, capsys, name, change, told):
    run = shutil.copytree(finished, tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result))  # in one line, as the others
    edit(run / name, change)
    assert main(["reproduce", str(run), "--out", str(tmp_path / "again")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_each_difference_is_a_line(finished):
    (start,) = [json.loads(line) for line in (finished / "starts.jsonl").read_text().splitlines()]
    assert differences(start, start) == []
    now = json.loads(json.dumps(start))
    now["python"] = "3.99.0"
    now["code"] |= {"hash": "f" * 64, "revision": None, "changes": None}
    now["devices"]["kind"] = "abacus"
    now["environment"]["XLA_FLAGS"] = "--other"
    now["data"]["val"] = "other"
    del now["packages"]["grain"]
    lines = differences(start, now)
    assert len(lines) == 6
    for part in ("no git revision", "3.99.0 now", "grain: ", "abacus now", "XLA_FLAGS: ", "the val split"):
        assert sum(part in line for line in lines) == 1, part
