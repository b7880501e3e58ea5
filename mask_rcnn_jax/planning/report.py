"""Plans as a table and as JSON."""

from collections.abc import Callable, Sequence
from typing import Any

from mask_rcnn_jax.planning.accounting import ASSUMED_TURNS, Account
from mask_rcnn_jax.planning.budget import fit, floor, remedy
from mask_rcnn_jax.planning.compiling import Plan
from mask_rcnn_jax.planning.devices import GIB, GPU_SHARE, Hardware
from mask_rcnn_jax.planning.stages import Stage

_SHOWN = 0.01  # of a program's traffic, products or least time, from which a stage has a row of its own
_SORTS = ("sort", "TopK", "__gpu$TopK")
Cell = Callable[[Plan, Sequence[Plan]], str]


def text(plans: Sequence[Plan]) -> str:
    """Return a table with a column for each plan, the stages of each, and notes."""
    rows = [["", *map(_heading, plans)]]
    rows += [[label, *(cell(plan, plans) for plan in plans)] for label, cell in _ROWS]
    blocks = [_title(plans[0]), _aligned(rows)]
    blocks += [
        f"{_heading(plan)}, by stage:\n{_aligned(_stage_rows(plan, plan.account))}" for plan in plans if plan.account
    ]
    return "\n\n".join([*blocks, *_notes(plans)])


def _number(value: float) -> str:
    """Write three digits, or all before the point."""
    if 0 < value < 1e-3:
        return "< 0.001"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _title(plan: Plan) -> str:
    what = "a training step" if plan.what == "train" else "detection"
    height, width = plan.size
    devices = f"{plan.devices} x {plan.target.hardware.title}"
    return f"{what} of images of {height} x {width} on {plan.target} ({devices}); figures are those of one device"


def _heading(plan: Plan) -> str:
    return f"batch {plan.batch}" + (f", remat {' '.join(plan.remat)}" if plan.remat else "")


def _of_account(show: Callable[[Account, Hardware], str]) -> Cell:
    return lambda plan, _: "" if plan.account is None else show(plan.account, plan.target.hardware)


def _of_memory(part: Callable[[Any], float]) -> Cell:
    return lambda plan, _: "" if plan.memory is None else _number(part(plan.memory) / GIB)


def _waits(found: Account, hardware: Hardware) -> str:
    if hardware.platform == "tpu":
        return "0"
    return f"{'at least ' if found.unknown_loops else ''}{found.host_waits}"


def _rate(plan: Plan, _: Sequence[Plan]) -> str:
    if plan.account is None:
        return ""
    return f"{plan.batch / floor(plan.account, plan.target.hardware).seconds:.0f}"


def _verdict(plan: Plan, _: Sequence[Plan]) -> str:
    if plan.fits:
        return "yes"
    return "no" if plan.memory is not None or plan.needed is not None else "does not compile"


def _images(plan: Plan, plans: Sequence[Plan]) -> str:
    found = fit(plan, plans)
    return "" if found is None else f"about {found.images}"


def _needed(plan: Plan, _: Sequence[Plan]) -> str:
    memory = _number(plan.target.hardware.memory / GIB)
    return f"? of {memory}" if plan.needed is None else f"{_number(plan.needed / GIB)} of {memory}"


_ROWS: tuple[tuple[str, Cell], ...] = (
    ("fits", _verdict),
    ("images at a time", lambda plan, _: f"{plan.images:g}"),
    ("images that fit", _images),
    ("memory, GiB", _needed),
    ("  inputs", _of_memory(lambda memory: memory.inputs)),
    ("  temporaries", _of_memory(lambda memory: memory.temporaries)),
    ("  outputs and code", _of_memory(lambda memory: memory.outputs + memory.code)),
    ("tracing, s", lambda plan, _: f"{plan.traced_s:.0f}"),
    ("compiling, s (of CPU)", lambda plan, _: f"{plan.compiled_s:.0f} ({plan.compiled_cpu_s:.0f})"),
    ("products, TFLOP", _of_account(lambda found, _: _number(found.operations / 1e12))),
    ("traffic, GB", _of_account(lambda found, _: _number(found.traffic / 1e9))),
    ("kernels", _of_account(lambda found, _: f"{sum(kernel.times for kernel in found.kernels)}")),
    ("sorts", _of_account(lambda found, _: f"{found.count(_SORTS)}")),
    ("loops (of unknown length)", _of_account(lambda found, _: f"{len(found.loops)} ({len(found.unknown_loops)})")),
    ("waits for the host", _of_account(_waits)),
    ("sent to other devices, MB", _of_account(lambda found, _: _number(_sent(found) / 1e6))),
    ("collectives", _of_account(lambda found, _: f"{sum(each.times for each in found.collectives)}")),
    ("least time, ms", _of_account(lambda found, on: _number(1e3 * floor(found, on).seconds))),
    ("  of traffic", _of_account(lambda found, on: _number(1e3 * floor(found, on).traffic))),
    ("  of products", _of_account(lambda found, on: _number(1e3 * floor(found, on).products))),
    ("  of what is sent", _of_account(lambda found, on: _number(1e3 * floor(found, on).exchange))),
    ("kernel after kernel, ms", _of_account(lambda found, on: _number(1e3 * floor(found, on).in_turn))),
    ("images/s at most, all devices", _rate),
)


def _sent(found: Account) -> float:
    return sum(each.sent * each.times for each in found.collectives)


def _stage_rows(plan: Plan, found: Account) -> list[list[str]]:
    hardware = plan.target.hardware
    rows = [["", "traffic, GB", "GFLOP", "ms at least", "kernels", "loops", "waits", "sent, MB"]]
    others = Account()
    total = floor(found, hardware).in_turn
    for stage, part in found.by_stage().items():
        shares = (part.traffic / found.traffic, floor(part, hardware).in_turn / max(total, 1e-12))
        if max(shares) >= _SHOWN or part.loops:
            rows.append([_name(stage), *_cells(part, hardware)])
        else:
            others.add(part)
    return [*rows, ["others", *_cells(others, hardware)]] if others.kernels else rows


def _cells(part: Account, hardware: Hardware) -> list[str]:
    loops = f"{len(part.loops)} ({len(part.unknown_loops)})" if part.loops else ""
    waits = part.host_waits if hardware.platform == "gpu" else 0
    return [
        _number(part.traffic / 1e9),
        _number(part.operations / 1e9) if part.operations else "",
        _number(1e3 * floor(part, hardware).in_turn),
        str(sum(kernel.times for kernel in part.kernels)),
        loops,
        str(waits or ""),
        _number(_sent(part) / 1e6) if part.collectives else "",
    ]


def _name(stage: Stage) -> str:
    return (stage.name or "outside of all scopes") + (", backward" if stage.backward else "")


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of cells, the first left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in enumerate(pairs))
        for pairs in (zip(row, widths, strict=True) for row in rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _notes(plans: Sequence[Plan]) -> list[str]:
    known = dict.fromkeys(found.how for plan in plans if (found := fit(plan, plans)))
    lines = [f"Images that fit: estimated {how}." for how in known]
    if any(plan.account and plan.account.unknown_loops for plan in plans):
        lines.append(f"Loops of unknown length are taken to turn {ASSUMED_TURNS} times.")
    if plans[0].target.hardware.platform == "gpu":
        lines.append(
            f"Memory is the share of {GPU_SHARE:.0%} that jax takes of a GPU's, unless XLA_PYTHON_CLIENT_MEM_FRACTION"
            " says otherwise. Nothing was timed to choose between kernels, as it is where there is a GPU."
        )
    lines += [f"{_heading(plan)}: {plan.failure}" for plan in plans if plan.failure]
    lines += [f"{remedy(plan, plans)}." for plan in plans if not plan.fits and (plan.memory or plan.needed)]
    return ["\n".join(lines)] if lines else []


def as_json(plans: Sequence[Plan]) -> dict[str, Any]:
    """Return all that is known as JSON: bytes, seconds, multiplications and additions, of one device."""
    first = plans[0]
    hardware = first.target.hardware
    return {
        "device": str(first.target),
        "title": hardware.title,
        "devices": first.devices,
        "memory": hardware.memory,
        "bandwidth": hardware.bandwidth,
        "peaks": dict(hardware.peaks),
        "link": hardware.link,
        "what": first.what,
        "size": list(first.size),
        "assumed_turns": ASSUMED_TURNS,
        "programs": [_program(plan, plans) for plan in plans],
    }


def _program(plan: Plan, plans: Sequence[Plan]) -> dict[str, Any]:
    held = fit(plan, plans)
    program: dict[str, Any] = {
        "batch": plan.batch,
        "images_at_a_time": plan.images,
        "remat": list(plan.remat),
        "compiles": plan.account is not None,
        "fits": plan.fits,
        "failure": plan.failure or None,
        "images_that_fit": held and {"images": held.images, "how": held.how},
        "needed": plan.needed,
        "memory": plan.memory and dict(vars(plan.memory)),
        "seconds": {"tracing": plan.traced_s, "compiling": plan.compiled_s, "compiling_cpu": plan.compiled_cpu_s},
    }
    if plan.account is not None:
        least = floor(plan.account, plan.target.hardware)
        program |= _figures(plan.account, plan.target.hardware)
        program["images_per_second"] = plan.batch / least.seconds
        program["stages"] = [
            {"stage": stage.name, "backward": stage.backward} | _figures(part, plan.target.hardware)
            for stage, part in plan.account.by_stage().items()
        ]
    return program


def _figures(found: Account, hardware: Hardware) -> dict[str, Any]:
    return {
        "traffic": found.traffic,
        "operations": found.operations,
        "kernels": sum(kernel.times for kernel in found.kernels),
        "sorts": found.count(_SORTS),
        "loops": len(found.loops),
        "loops_of_unknown_length": len(found.unknown_loops),
        "host_waits": found.host_waits if hardware.platform == "gpu" else 0,
        "collectives": sum(each.times for each in found.collectives),
        "sent": _sent(found),
        "least_seconds": dict(vars(floor(found, hardware))) | {"all": floor(found, hardware).seconds},
    }
