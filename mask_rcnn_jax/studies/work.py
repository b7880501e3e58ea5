"""The work on a study: trains what is missing, beside other processes that share its folder, and reports."""

import json
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from mask_rcnn_jax.config import UnknownClass, differences, from_json
from mask_rcnn_jax.disk.files import ANY_TEXT, replacing
from mask_rcnn_jax.disk.places import check_place
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.extras import require
from mask_rcnn_jax.ranges import with_incidentals_of
from mask_rcnn_jax.studies.cells import Cell, Say, cells_of, finish, is_finished
from mask_rcnn_jax.studies.plan import Plan
from mask_rcnn_jax.studies.report import report_of
from mask_rcnn_jax.studies.tables import as_markdown
from mask_rcnn_jax.training.datasets import check_proposals
from mask_rcnn_jax.training.runs.workdir import AtWork, check_workdir, continued
from mask_rcnn_jax.training.step import make_mesh

REPORT_FILE, TABLES_FILE, PICTURE_FILE = "study.json", "study.md", "study.png"


def run_study(plan: Plan, folder: Path, title: str, only: Collection[str] = (), say: Say = print) -> None:
    """Train in `folder` the cells that are not finished, of all rows or of those in `only`, and report on all.

    A cell that another process has is passed over. One that fails for a reason that a person can mend is left for the
    next time, and the others go on. Raises `UserError` before anything is trained where something is wrong with the
    place or a row, at the end for the cells that failed, and `Stopped` where a signal ended a training.
    """
    cells = _checked(plan, folder, only)
    _write_report(plan, folder, title, say)
    failed: dict[str, UserError] = {}
    goes_on = True
    while goes_on:
        goes_on, passed_over = False, []
        for cell in cells:
            if cell.name in failed or is_finished(cell, plan):
                continue
            try:
                say(f"study: {cell.name}")
                finish(cell, plan, say)
            except AtWork:
                say(f"study: {cell.name} is passed over, another process has it")
                passed_over.append(cell)
            except UserError as error:
                say(f"study: {cell.name} failed: {error}")
                failed[cell.name] = error
            else:
                goes_on = True
                _write_report(plan, folder, title, say)
        # What was passed over may have been given up meanwhile.
        goes_on = goes_on and bool(passed_over)
    done = sum(is_finished(cell, plan) for cell in cells)
    say(f"study: {done} of {len(cells)} cells are finished; see {folder / TABLES_FILE}")
    if failed:
        name, error = next(iter(failed.items()))
        raise UserError(f"{len(failed)} cells failed, which the same command tries again, e.g. {name}: {error}")


def _checked(plan: Plan, folder: Path, only: Collection[str]) -> list[Cell]:
    """The cells to be trained. Raises UserError for what can be known to be wrong before any is."""
    check_place("--workdir", folder)
    names = [row.name for row in plan.rows]
    if unknown := sorted(set(only) - set(names)):
        raise UserError(f"--rows: there is no row {unknown[0]}; there are {', '.join(names)}")
    _check_same(plan, folder)
    cells = cells_of(plan, folder)
    for cell in cells:
        check_workdir(cell.workdir)
        continued(cell.workdir, cell.config)
    chosen = [cell for cell in cells if not only or cell.row in only]
    for cell in chosen:
        with _named(cell.row):
            make_mesh(cell.config)
            check_proposals(cell.config)
    return chosen


@contextmanager
def _named(row: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"row {row}: {error}") from None


def _check_same(plan: Plan, folder: Path) -> None:
    """Raise UserError where `folder` holds another study; what has been added since to one is no difference."""
    stored = _stored_plan(folder)
    if stored is None:
        return
    now = {row.name: row.config for row in plan.rows}
    lines: list[str] = []
    for row in stored.rows:
        if row.name not in now:
            lines.append(f"row {row.name} is there and not in the file")
            continue
        config = now[row.name]
        lines += [f"row {row.name}, {line}" for line in differences(with_incidentals_of(row.config, config), config)]
        # A run knows its proposals by their content; rows may differ in nothing else.
        if row.config.data.proposals != config.data.proposals:
            lines.append(f"row {row.name}, data.proposals: {row.config.data.proposals} != {config.data.proposals}")
    lines += [f"seed {seed} is there and not in the file" for seed in stored.seeds if seed not in plan.seeds]
    if stored.checkpoint != plan.checkpoint:
        lines.append(f"checkpoint: {stored.checkpoint!r} != {plan.checkpoint!r}")
    if lines:
        raise UserError(f"{folder} holds another study ({'; '.join(lines)}); use another --workdir, or its own file")


def _stored_plan(folder: Path) -> Plan | None:
    path = folder / REPORT_FILE
    try:
        return from_json(Plan, json.loads(path.read_bytes())["plan"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnknownClass as error:
        raise UserError(f"{path}: {error}") from None
    except (UserError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no report of a study of this version ({error}); use another --workdir") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); mend that") from None


def _write_report(plan: Plan, folder: Path, title: str, say: Say) -> None:
    """Write the report on the cells that are finished, each file whole or not at all."""
    before: list[str] | None = None
    # One that another process finishes meanwhile would be missing where that one has written its report before.
    while before != (before := [cell.name for cell in cells_of(plan, folder) if is_finished(cell, plan)]):
        try:
            _check_same(plan, folder)
        except UserError as error:  # another process has added rows to it, say, and reports on them as well
            say(f"study: no report is written: {error}")
            return
        _write_files(plan, folder, title, say)


def _write_files(plan: Plan, folder: Path, title: str, say: Say) -> None:
    report, owner = report_of(plan, folder), secrets.token_hex(8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / REPORT_FILE, owner) as part:
            part.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        with replacing(folder / TABLES_FILE, owner) as part:
            part.write_text(as_markdown(report, title, folder), encoding="utf-8", errors=ANY_TEXT)
        try:
            require("plots", folder / PICTURE_FILE)
        except UserError as missing:
            say(str(missing))
            return
        from mask_rcnn_jax.studies.plots import write_picture

        with replacing(folder / PICTURE_FILE, owner) as part:
            write_picture(report, title, part)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); mend that") from None
