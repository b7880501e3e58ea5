import io
import json
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training.reporting.metrics import MetricsWriter

TRAINING = {
    "loss": 1.25,
    "loss/rpn_class": 0.5,
    "loss/mask": 0.75,
    "learning_rate": 0.01,
    "images_per_second": 5.25,
    "data_wait": 0.012,
    "gradient_norm": 3.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def read_lines(workdir: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_events(workdir: Path) -> list[Event]:
    """The records of all event files: 8 bytes of length, 4 of checksum, the event, 4 of checksum."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event()
            event.ParseFromString(data[12 : 12 + length])
            events.append(event)
            data = data[16 + length :]
    return events


def test_lines_hold_every_value_and_null_for_what_is_not_finite(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "run", 10, stream=io.StringIO()) as writer:
        writer.write(1, {"loss": np.float32(0.5), "a": 2, "b": float("nan"), "c": float("inf")})
        lines_while_open = read_lines(tmp_path / "run")
        writer.write(2, {"segm/AP": 0.25})
    assert lines_while_open == [{"step": 1, "loss": 0.5, "a": 2.0, "b": None, "c": None}]
    assert read_lines(tmp_path / "run") == [*lines_while_open, {"step": 2, "segm/AP": 0.25}]


def test_tensorboard_gets_the_finite_values(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, 10, stream=io.StringIO()) as writer:
        writer.write(3, {"loss": 0.5, "segm/AP": 0.25, "b": float("nan")})
    scalars = {(v.tag, e.step): v.simple_value for e in read_events(tmp_path) for v in e.summary.value}
    assert scalars == {("loss", 3): 0.5, ("segm/AP", 3): 0.25}


def test_a_file_where_tensorboards_folder_belongs_is_named(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    with pytest.raises(UserError, match="tensorboard is no folder, or its disk fails; remove it, or mend that"):
        MetricsWriter(tmp_path, 10)


def test_a_resumed_run_repeats_no_step(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, 40, stream=io.StringIO()) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 40, "lo')  # killed while writing
    with MetricsWriter(tmp_path, 40, start_step=20, stream=io.StringIO()) as writer:
        for step in (30, 40):
            writer.write(step, {"loss": -float(step)})
    assert [(line["step"], line["loss"]) for line in read_lines(tmp_path)] == [(10, 10), (20, 20), (30, -30), (40, -40)]
    # TensorBoard forgets the steps from this mark on that earlier files hold.
    assert [event.step for event in read_events(tmp_path) if event.session_log.status == 1] == [1, 21]


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    stream, clock = io.StringIO(), Clock()
    with MetricsWriter(tmp_path, 2000, start_step=100, stream=stream, clock=clock) as writer:
        writer.say("hello")
        clock.seconds = 60.0
        writer.write(110, TRAINING)
        writer.write(110, {"segm/AP": 0.25, "segm/AP/star": 0.5})  # its table is said, not this
        clock.seconds = 70.0
        writer.write(120, TRAINING)
    assert stream.getvalue().splitlines() == [
        "hello",
        "step 110/2000  loss 1.25  lr 0.01  5.25 img/s  wait 1.2%  eta 3:09:00  (rpn_class 0.5, mask 0.75)",
        # 1880 steps at the second a step that they take after compilation
        "step 120/2000  loss 1.25  lr 0.01  5.25 img/s  wait 1.2%  eta 0:31:20  (rpn_class 0.5, mask 0.75)",
    ]


def test_a_lone_loss_is_enough_for_a_line(tmp_path: Path) -> None:
    stream = io.StringIO()
    with MetricsWriter(tmp_path, 5, stream=stream, clock=Clock()) as writer:
        writer.write(5, {"loss": float("nan")})
    assert stream.getvalue() == "step 5/5  loss nan  eta 0:00:00\n"


def test_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LINES", "50")
    stream, clock = Terminal(), Clock()
    with MetricsWriter(tmp_path, 200, stream=stream, clock=clock) as writer:
        clock.seconds = 10.0
        writer.write(100, TRAINING)
        writer.say("hello")
    shown = stream.getvalue()
    assert "100/200" in shown
    assert "loss 1.25  lr 0.01  5.25 img/s  wait 1.2%  eta 0:00:10  (rpn_class 0.5, mask 0.75)" in shown
    assert "\rhello\n" in shown  # the bar was taken off the line first
    assert "step" not in shown


def test_bins_become_histograms(tmp_path: Path) -> None:
    levels = {"histogram/anchors_by_level/p3": 6.0, "histogram/anchors_by_level/p2": 2.0}
    levels |= {"histogram/rois_by_level/image": 4.0}
    shares = {f"histogram/rois_by_iou/{i / 10}": float(i) for i in range(10)}
    with MetricsWriter(tmp_path, 10, stream=io.StringIO()) as writer:
        writer.write(3, {"loss": 0.5} | levels | shares)
    found = {value.tag: value for event in read_events(tmp_path) for value in event.summary.value}
    assert set(found) == {"loss", "anchors_by_level", "rois_by_level", "rois_by_iou"}
    by_level, by_iou = found["anchors_by_level"].histo, found["rois_by_iou"].histo
    assert (by_level.min, list(by_level.bucket_limit), list(by_level.bucket)) == (1.5, [2.5, 3.5], [2, 6])
    assert (by_level.num, by_level.sum, by_level.sum_squares) == (8, 2 * 2 + 6 * 3, 2 * 4 + 6 * 9)
    one = found["rois_by_level"].histo
    assert (one.min, list(one.bucket_limit), list(one.bucket)) == (-0.5, [0.5], [4])
    assert list(by_iou.bucket_limit) == pytest.approx([0.1 * i for i in range(1, 11)])
    assert list(by_iou.bucket) == list(range(10))


def test_an_evaluation_that_is_repeated_is_recorded_once(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, 40, stream=io.StringIO()) as writer:
        for step in (10, 20):
            writer.write(step, {"loss": float(step)})
            writer.write(step, {"segm/AP": 0.5})
    with MetricsWriter(tmp_path, 40, 20, stream=io.StringIO(), evaluates_again=True) as writer:
        writer.write(20, {"segm/AP": 0.5})
    assert [tuple(line) for line in read_lines(tmp_path)] == [("step", "loss"), ("step", "segm/AP")] * 2


@pytest.mark.parametrize("name", ["s3:run", "gs:run"])
def test_a_folder_is_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with MetricsWriter(name, 10, stream=io.StringIO()) as writer:
        writer.write(1, {"loss": 0.5})
    assert read_events(tmp_path / name)
