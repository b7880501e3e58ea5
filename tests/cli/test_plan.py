"""`mask-rcnn plan`: its table, its JSON and its sentences, with plans that no compiler made."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from mask_rcnn_jax.cli import plan as command
from mask_rcnn_jax.cli.main import main
from mask_rcnn_jax.planning.accounting import Account, Collective, Kernel, Loop
from mask_rcnn_jax.planning.devices import GIB, Target
from mask_rcnn_jax.planning.products import Product
from mask_rcnn_jax.planning.stages import Stage
from tests.planning.plans import a_plan

ACCOUNT = Account(
    kernels=[
        Kernel("conv", "convolution", Stage("res2"), 1, 48e9, (Product(989e9, "half"),)),
        Kernel("sort", "sort", Stage("proposals"), 5, 48e6, ()),
        Kernel("small", "add", Stage("box_losses", backward=True), 1, 4800.0, ()),
    ],
    loops=[Loop(Stage("proposals"), 1, None, False)],
    collectives=[Collective("all-reduce", Stage(""), 1, 90_000_000, 4)],
)


@pytest.fixture
def plan(monkeypatch) -> Callable[..., int]:
    """Runs the command on four devices; a program needs a quarter of a GiB for its state, and as much an image."""
    monkeypatch.setattr(Target, "require_compiler", lambda _: None)
    monkeypatch.setattr(Target, "devices", lambda _: jax.devices()[:4])

    def made(config, target, mesh, what, size):
        each = 0.1 if config.model.remat else 0.25
        needed = (0.25 + each * config.batch_size / 4) * GIB
        made = a_plan(str(target), batch=config.batch_size, needed=needed, fixed=GIB / 4, account=ACCOUNT)
        return replace(made, what=what, size=size, remat=config.model.remat)

    monkeypatch.setattr(command, "compiled_plan", made)
    return lambda *options: main(["plan", "--config", "coco_r50_fpn_1x", *map(str, options)])


def test_the_table_has_a_column_a_program_and_stages_by_traffic(plan, capsys) -> None:
    assert plan("--device", "h200:4", "--batch", 8, 16, "--remat", "backbone", "box_head") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a training step of images of 800 x 1344 on h200:4 (4 x NVIDIA H200 SXM)")
    table = {line[:30].strip(): line[30:].split() for line in lines[3:26]}
    assert table["fits"] == ["yes"] * 4
    assert table["images at a time"] == ["2", "4", "2", "4"]
    assert table["images that fit"] == ["about", "392", "about", "392", "about", "982", "about", "982"]
    assert table["least time, ms"] == ["10.1"] * 4  # 48.24 GB at 4.8 TB/s
    assert table["images/s at most, all devices"] == ["796", "1592"] * 2
    assert table["waits for the host"] == ["at", "least", "4"] * 4
    stages = [line.split("  ")[0] for line in lines[lines.index("batch 8, by stage:") + 2 :][:4]]
    assert stages == ["res2", "proposals", "outside of all scopes", "others"]
    assert "Images that fit: estimated from the batches of 8 and 16." in lines


def test_json_has_the_same_in_bytes_and_seconds(plan, capsys) -> None:
    assert plan("--device", "v5e:2x2", "--batch", 8, "--json", "--what", "detect", "--size", 64, 128) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["devices"], found["size"], found["what"]) == ("v5e:2x2", 4, [64, 128], "detect")
    (program,) = found["programs"]
    assert (program["compiles"], program["fits"], program["host_waits"]) == (True, True, 0)
    assert program["memory"]["inputs"] + program["memory"]["temporaries"] == 0.75 * GIB
    assert program["least_seconds"]["traffic"] == pytest.approx((48e9 + 5 * 48e6 + 4800) / 819e9)
    assert program["sent"] == 2 * 3 / 4 * 90e6
    assert [stage["stage"] for stage in program["stages"]] == ["res2", "proposals", "box_losses", ""]
    assert program["stages"][1]["loops_of_unknown_length"] == 1


def test_without_a_batch_it_is_the_configurations(plan, capsys) -> None:
    for what, batch in (("train", 16), ("detect", 16)):  # four images a device in evaluation
        assert plan("--device", "v5e:2x2", "--json", "--what", what) == 0
        assert json.loads(capsys.readouterr().out)["programs"][0]["batch"] == batch


def test_where_nothing_fits_the_status_says_so_and_what_would(plan, capsys) -> None:
    assert plan("--device", "v5e:2x2", "--batch", 400) == 2
    out, error = capsys.readouterr()
    assert "no" in next(line for line in out.splitlines() if line.startswith("fits"))
    assert error.startswith("error: a batch of 400 does not fit v5e:2x2: a device needs 25.2 GiB of 15.8 GiB; try")
    assert plan("--device", "v5e:2x2", "--batch", 400, 8) == 0
    assert "a batch of 400 does not fit v5e:2x2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "h20:8"], "--device h20:8: unknown; the nearest are h200:8, h100:8"),
        (["--device", "v5e:2x2", "--batch", "6"], "batch_size=6 cannot be shared equally by 4 devices"),
        (["--device", "v5e:2x2", "--batch", "6", "--what", "detect"], "6 images cannot be shared equally"),
        (
            ["--device", "v5e:2x2", "--size", "100", "64"],
            "--size 100 64: model.backbone takes sides that",
        ),
        (["--device", "v5e:2x2", "--remat", "neck"], "model: remat: expected some of backbone, "),
        (["--device", "v5e:2x2", "--what", "detect", "--remat", "backbone"], "--remat is for gradients"),
        (["--device", "v5e:2x2", "--set", "model.dtpye=float32"], "model.dtpye"),
    ],
)
def test_a_mistake_is_one_sentence(plan, options: list[str], said: str, capsys) -> None:
    assert plan(*options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_program_that_does_not_compile_is_said_with_the_reason(plan, monkeypatch, capsys) -> None:
    def refused(config, target, mesh, what, size):
        return a_plan(str(target), batch=config.batch_size, failure="UNIMPLEMENTED: sort of complex numbers")

    monkeypatch.setattr(command, "compiled_plan", refused)
    assert plan("--device", "v5e:2x2") == 2
    out, error = capsys.readouterr()
    assert "does not compile" in out
    assert error == "error: the compiler of v5e:2x2 refuses the program: UNIMPLEMENTED: sort of complex numbers\n"


def test_a_configuration_must_exist(tmp_path: Path, capsys) -> None:
    assert main(["plan", "--device", "h200", "--config", str(tmp_path / "none.py")]) == 2
    assert "does not exist" in capsys.readouterr().err
