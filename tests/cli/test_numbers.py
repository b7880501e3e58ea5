"""Numbers on the command line: each option with one says its range, before anything is read."""

import argparse
import importlib
from fractions import Fraction

import pytest

from mask_rcnn_jax.cli.main import COMMANDS, main
from mask_rcnn_jax.cli.numbers import number
from mask_rcnn_jax.ranges import Range

PREDICT = ["predict", "a.png", "--checkpoint", "runs/a", "--out", "out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PREDICT, "--score-threshold", "7"], "--score-threshold: must be at least 0 and at most 1, not 7"),
        ([*PREDICT, "--score-threshold", "7", "--tile", "64"], "--score-threshold: must be at least 0 and at most 1"),
        ([*PREDICT, "--score-threshold", "7", "--augment"], "--score-threshold: must be at least 0 and at most 1"),
        ([*PREDICT, "--score-threshold", "nan"], "--score-threshold: must be at least 0 and at most 1, not nan"),
        ([*PREDICT, "--batch-size", "0"], "--batch-size: must be at least 1, not 0"),
        ([*PREDICT, "--batch-size", "9" * 5000], "--batch-size: expected a whole number, not '999"),
        ([*PREDICT, "--tile", "8"], "--tile: must be at least 16, not 8"),
        ([*PREDICT, "--tile", "64", "--overlap", "-3"], "--overlap: must be at least 1, not -3"),
        ([*PREDICT, "--fps", "0"], "--fps: must be above 0 and at most 1000, not 0"),
        ([*PREDICT, "--fps", "1/0"], "--fps: expected a number or a fraction, not '1/0'"),
        ([*PREDICT, "--max-pixels", "0"], "--max-pixels: must be at least 1 and at most 1000000000000, not 0"),
        (["browse", "--data", "d", "--out", "out", "--num", "0"], "--num: must be at least 1, not 0"),
        (
            ["browse", "--data", "d", "--out", "out", "--seed", "-1"],
            "must be at least 0 and at most 4294967295, not -1",
        ),
        (["convert", "id-masks", "d", "out", "--void", "-1"], "--void: must be at least 0, not -1"),
        (["convert", "yolo", "d", "out", "--val-share", "1"], "--val-share: must be above 0 and below 1, not 1"),
        (["convert", "yolo", "d", "out", "--val-share", "x"], "--val-share: expected a number, not 'x'"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_range(arguments, message, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--pictures", "-1"], "--pictures: must be at least 0, not -1"),
        (["--processes", "0"], "--processes: must be at least 1, not 0"),
        (["--process", "-1"], "--process: must be at least 0, not -1"),
    ],
)
def test_evaluation_refuses_numbers_out_of_range(option, message, capsys) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module("mask_rcnn_jax.cli.eval").main(["--workdir", "runs/a", *option])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_numbers_in_range_are_read() -> None:
    assert number(int, Range(0))("0") == 0
    assert number(float, Range(0, 1))("1e-1") == 0.1
    assert number(Fraction, Range(0, 1000, above_low=True))("30000/1001") == Fraction(30000, 1001)
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number"):
        number(int, Range(0))("1.5")


def test_every_number_on_a_command_line_has_a_range(monkeypatch) -> None:
    """No option takes any `int` or `float`; those of `export` are checked with the model's canvas."""
    plain: list[str] = []
    add = argparse._ActionsContainer.add_argument

    def watched(self, *names, **settings):
        if settings.get("type") in (int, float, Fraction):
            plain.append(names[0])
        return add(self, *names, **settings)

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", watched)
    for name, _ in COMMANDS.values():
        importlib.import_module(f"mask_rcnn_jax.cli.{name}")._parser()
    assert set(plain) <= {"--input", "--canvas"}
