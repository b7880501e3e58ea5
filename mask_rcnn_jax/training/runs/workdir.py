"""A run's folder: it belongs to one configuration, and is only ever gone on with."""

import errno
import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from mask_rcnn_jax import processes
from mask_rcnn_jax.config import UnknownClass, differences, from_json, to_json
from mask_rcnn_jax.disk.files import exists, replacing
from mask_rcnn_jax.disk.places import FOLDER, check_place, checkpoints_in, inside, is_unfinished
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.ranges import with_incidentals_of
from mask_rcnn_jax.training.config import ExperimentConfig
from mask_rcnn_jax.training.runs.provenance import METRICS_FILE, STARTS_FILE

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # of network file systems, and some others


class AtWork(UserError):
    """Another run has the folder."""


def read_config(workdir: Path) -> ExperimentConfig | None:
    """The configuration of the run in `workdir`, or None where there is no run."""
    path = workdir / CONFIG_FILE
    try:
        tree = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); mend that, or use another folder"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); use another --workdir") from None
    try:
        return from_json(ExperimentConfig, tree)
    except UnknownClass as error:
        raise UserError(f"{path}: {error}") from None
    except UserError as error:
        raise UserError(f"{path} does not fit this version: {error}; use another --workdir") from None


def claim(workdir: Path, config: ExperimentConfig) -> ExperimentConfig:
    """Makes `workdir` the folder of this run, or checks that it is, and returns the run's configuration.

    A run that stopped before it trained anything makes way. One that has trained may go on with other settings that do
    not decide its result, which are then recorded; where its weights once came from stays. Raises UserError where
    another setting differs, or where the configuration of what was trained is lost.
    """
    config = continued(workdir, config)
    if read_config(workdir) == config:
        return config
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with replacing(workdir / CONFIG_FILE) as part:
            part.write_text(json.dumps(to_json(config), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror or error}") from None
    return config


def continued(workdir: Path, config: ExperimentConfig) -> ExperimentConfig:
    """Returns the configuration with which the run in `workdir`, if there is one, goes on when `config` is asked for.

    Raises UserError as `claim` does. Touches nothing.
    """
    trained = _trained(workdir)
    present = read_config(workdir)
    if trained and present is None:
        raise UserError(f"{workdir} holds {' and '.join(trained)} but no {CONFIG_FILE}; use another --workdir")
    if trained and present is not None:
        if checkpoints_in(workdir / FOLDER):
            config = replace(config, pretrained=present.pretrained)
        if different := differences(with_incidentals_of(present, config), config):
            raise UserError(
                f"{workdir} holds a run with another configuration ({'; '.join(different)}); use another --workdir, or"
                " the run's own settings to go on with it"
            )
    return config


def check_workdir(workdir: Path) -> None:
    """Raises `UserError` where no run can begin or go on in `workdir`, whatever its settings are. Touches nothing."""
    check_place("--workdir", workdir)
    checkpoints = checkpoints_in(workdir / FOLDER)
    began = any(exists(workdir / name) for name in (METRICS_FILE, STARTS_FILE))
    if checkpoints and not began and not any(exists(path / "optimizer") for path in checkpoints.values()):
        raise UserError(
            f"{workdir} holds weights to start from, such as an import's, and no run that could be resumed; to start"
            f" from them, train in another --workdir with pretrained={workdir}"
        )


@contextmanager
def locked(workdir: Path, lock: str = LOCK_FILE) -> Iterator[list[str]]:
    """Keeps other runs out of `workdir`; the system lets go of the lock when the process ends, however it ends.

    Gives what is to be said: where the file system has no locks the run goes on without. Raises `AtWork` where
    another run has it. Of several processes of a run the first one holds it. `lock` is the name of its file: what is
    done before and after a run, too, needs one beside the run's own.
    """
    with ExitStack() as stack:
        yield processes.by_first(lambda: _lock(workdir, lock, stack))


def _lock(workdir: Path, lock: str, stack: ExitStack) -> list[str]:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context((workdir / lock).open("a"))
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror or error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AtWork(f"another run is at work in {workdir}; wait for it to end, or use another --workdir") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return [f"{workdir} is on a file system without locks ({error.strerror}): start no second run there meanwhile"]
    return []


def _trained(workdir: Path) -> list[str]:
    """Return what the folder holds of a run: checkpoints, which may be damaged but not unfinished, and metrics."""
    folder, metrics = workdir / FOLDER, workdir / METRICS_FILE
    found = [FOLDER] if any(not is_unfinished(path) for path in inside(folder)) else []
    return [*found, METRICS_FILE] if metrics.is_file() and metrics.stat().st_size else found
