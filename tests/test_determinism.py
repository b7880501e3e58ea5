"""`--deterministic`: the flags are set before XLA reads them, recorded, and taken again by `reproduce`."""

import json
import os
import subprocess
import sys

import jax
import pytest

from mask_rcnn_jax.cli import eval as eval_command
from mask_rcnn_jax.cli.runs import train as train_command
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training.runs import determinism, reproduce
from mask_rcnn_jax.training.runs.determinism import FLAGS, is_deterministic, use_deterministic_programs
from tests.tiny import tiny_experiment

# A process of its own: XLA reads its flags once, and stops the process where it does not know one.
FRESH = """
import json
from mask_rcnn_jax.cli.runs import train
from mask_rcnn_jax.training.runs.determinism import use_deterministic_programs
from mask_rcnn_jax.training.runs.provenance import describe_machine
use_deterministic_programs()
print(json.dumps(describe_machine()))
"""


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # so that what a test sets is undone, too
    monkeypatch.delenv("XLA_FLAGS")


@pytest.fixture
def unused(monkeypatch):
    """As if jax had used no device yet."""
    monkeypatch.setattr(determinism.xla_bridge, "backends_are_initialized", lambda: False)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, []),
        ("--xla_dump_to=x --xla_gpu_deterministic_ops=false", ["--xla_dump_to=x"]),
        (f"--xla_dump_to=x {FLAGS[1]}", ["--xla_dump_to=x"]),
    ],
)
def test_flags_are_added_to_those_of_the_user(given, kept, unused, monkeypatch):
    if given is not None:
        monkeypatch.setenv("XLA_FLAGS", given)
    for _ in range(2):
        use_deterministic_programs()
        assert os.environ["XLA_FLAGS"].split() == [*kept, *FLAGS]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--xla_gpu_deterministic_ops=false {} {}", True),
        ("{} {} --xla_gpu_deterministic_ops=false", False),
        ("{} {} --xla_gpu_exclude_nondeterministic_ops=0", False),
        ("{} --xla_gpu_exclude_nondeterministic_ops", True),
        ("{1} --xla_gpu_deterministic_ops='True'", True),
        ("{0}", False),
    ],
)
def test_the_last_of_contradicting_flags_counts(flags, expected, unused, monkeypatch):
    """As in XLA, which runs with the last and takes a flag without a value for true."""
    flags = flags.format(*FLAGS)
    assert is_deterministic(flags) == expected
    monkeypatch.setenv("XLA_FLAGS", flags)
    use_deterministic_programs()
    assert is_deterministic(os.environ["XLA_FLAGS"])


def test_a_file_of_flags_is_not_added_to(unused, monkeypatch):
    """XLA would take the file's name and the flags after it for the name of another file, and abort."""
    monkeypatch.setenv("XLA_FLAGS", "flags.txt")
    with pytest.raises(UserError, match=r"XLA_FLAGS names the file flags\.txt; put its flags into XLA_FLAGS"):
        use_deterministic_programs()


def test_xla_knows_the_flags_and_a_start_records_them():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert is_deterministic(json.loads(done.stdout)["environment"]["XLA_FLAGS"])


@pytest.mark.parametrize("command", [train_command, eval_command])
def test_too_late_is_said_before_anything_is_done(command, tmp_path, capsys):
    jax.devices()
    assert command.main(["--deterministic", "--workdir", str(tmp_path / "run")]) == 2
    assert f"set XLA_FLAGS='{' '.join(FLAGS)}' before the program starts" in capsys.readouterr().err
    assert "XLA_FLAGS" not in os.environ
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", ["", " ".join(FLAGS)])
def test_a_run_is_repeated_with_the_flags_that_it_had(flags, unused, tmp_path, monkeypatch):
    def counted(workdir, starts):
        raise UserError(os.environ.get("XLA_FLAGS", ""))  # what is set when devices are first asked for

    monkeypatch.setattr(reproduce, "read_config", lambda workdir: tiny_experiment(tmp_path))
    starts = [{"environment": {"XLA_FLAGS": flags} if flags else {}}]
    monkeypatch.setattr(reproduce.provenance, "read_starts", lambda workdir: starts)
    monkeypatch.setattr(reproduce, "_check_records", lambda workdir, starts: None)
    monkeypatch.setattr(reproduce, "_check_devices", counted)
    with pytest.raises(UserError) as error:
        reproduce.reproduce(tmp_path, tmp_path / "again", print)
    assert str(error.value) == flags
