"""The picture of a run's learning curves."""

import json
from pathlib import Path

from PIL import Image

from mask_rcnn_jax.training.reporting.curves import draw, draw_curves, read_curves

LINES = [
    {"step": 10, "loss": 2.0, "loss/mask": 1.5, "gradient_norm": 3.0, "gradient_norm/rpn": 2.0, "learning_rate": 0.1},
    {"step": 20, "loss": None, "loss/mask": 1.0, "gradient_norm": None, "gradient_norm/rpn": 1.0, "learning_rate": 0.2},
    {"step": 20, "segm/AP": 0.25, "segm/AP/star": 0.5, "segm/APs": 0.1, "average/segm/AP": 0.3},
    {"step": 30, "loss": 1.0, "loss/mask": 0.5, "histogram/anchors_by_level/p2": 4.0, "images_per_second": 8.0},
]


def write(workdir: Path, lines: list[dict]) -> None:
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_each_metric_is_in_its_panel_and_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    figure = draw(read_curves(tmp_path / "metrics.jsonl"), "run")
    shown = {
        axes.get_title(): {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}
        for axes in figure.axes
    }
    assert shown == {
        "losses": {"total": [(10, 2.0), (30, 1.0)], "mask": [(10, 1.5), (20, 1.0), (30, 0.5)]},
        "validation": {"segm AP": [(20, 0.25)], "average segm AP": [(20, 0.3)]},
        "gradient norm": {"all": [(10, 3.0)], "rpn": [(10, 2.0), (20, 1.0)]},
        "learning rate": {"learning_rate": [(10, 0.1), (20, 0.2)]},
        "foreground an image, by level": {"anchors p2": [(30, 4.0)]},
        "images a second": {"images_per_second": [(30, 8.0)]},
    }


def test_the_picture_is_drawn_anew(tmp_path: Path) -> None:
    assert not (tmp_path / "curves.png").exists()
    write(tmp_path, LINES[:1])
    assert draw_curves(tmp_path) is None
    first = (tmp_path / "curves.png").read_bytes()
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1500, 850)
    write(tmp_path, LINES)
    assert draw_curves(tmp_path) is None
    assert (tmp_path / "curves.png").read_bytes() != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_a_long_run_is_averaged_to_what_a_picture_shows(tmp_path: Path) -> None:
    write(tmp_path, [{"step": step, "loss": 1.0 + step % 2} for step in range(1, 10_001)])
    losses = draw(read_curves(tmp_path / "metrics.jsonl"), "run").axes[0].get_lines()[0]
    assert len(losses.get_xdata()) == 2000
    assert losses.get_xdata()[-1] == 10_000
    assert abs(sum(losses.get_ydata()) / 2000 - 1.5) < 1e-9


def test_a_picture_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    (tmp_path / "curves.png").mkdir()
    assert "curves.png cannot be written (Is a directory)" in str(draw_curves(tmp_path))


def test_a_run_may_have_any_name(tmp_path: Path) -> None:
    run = tmp_path / "$\\frac$ \udcff \u65e5\n"
    run.mkdir()
    write(run, LINES)
    assert draw_curves(run) is None
    assert (run / "curves.png").is_file()
