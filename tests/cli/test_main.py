"""`mask-rcnn`: its commands, its start without jax, and the configurations that it finds by name."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mask_rcnn_jax import __version__, configs
from mask_rcnn_jax.cli.main import COMMANDS, main
from mask_rcnn_jax.cli.runs.experiment import config_path, load_experiment
from mask_rcnn_jax.config import differences
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.training import ExperimentConfig
from mask_rcnn_jax.training.runs.workdir import claim

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps(name: str, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"usage: mask-rcnn {name} " in capsys.readouterr().out


def test_it_starts_without_jax() -> None:
    code = """if True:
        import sys
        import mask_rcnn_jax
        from mask_rcnn_jax.cli.main import main
        for arguments in (["--help"], ["--version"]):
            try:
                main(arguments)
            except SystemExit as end:
                assert not end.code
        print(sorted({"jax", "numpy", "flax", "absl"} & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *_, versions, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert versions.startswith(f"mask-rcnn {__version__} (jax ")


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_files_of_the_checkout_call_their_commands(command: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{command}.py", "--set"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / f"{command}.py"), run_name="__main__")
    assert f"mask-rcnn {command}: error: argument --set" in capsys.readouterr().err


@pytest.mark.parametrize("name", configs.names())
def test_configs_are_found_by_name_from_any_folder(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_experiment(config_path(name)), ExperimentConfig)


def test_a_name_that_is_none_is_answered_with_the_names() -> None:
    with pytest.raises(UserError, match=r"--config coco_r50 does not exist; .* coco_r50_fpn_1x, .*shapes"):
        load_experiment(config_path("coco_r50"))


def test_a_run_in_the_current_folder_goes_before_a_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    assert config_path("shapes") == configs.file_of("shapes")  # a folder, but no run
    claim(tmp_path / "shapes", ExperimentConfig())
    assert config_path("shapes") == Path("shapes")


def test_a_config_builds_on_another() -> None:
    from mask_rcnn_jax.configs import (
        coco_fast_rcnn_r50_fpn_1x,
        coco_panoptic_fpn_r50_1x,
        coco_pointrend_r50_fpn_1x,
        coco_r50_fpn_1x,
        coco_r101_fpn_3x,
    )

    (changed,) = differences(coco_r50_fpn_1x.get_config(), coco_pointrend_r50_fpn_1x.get_config())
    assert changed == "model.mask_head: MaskHeadConfig != PointRendConfig"
    found = differences(coco_r50_fpn_1x.get_config(), coco_fast_rcnn_r50_fpn_1x.get_config())
    assert [line.partition(" != ")[0] for line in found] == [
        "model.rpn: RPNConfig",
        "model.mask_head: MaskHeadConfig",
        "data.source.boxes_only: False",
        "data.proposals: None",
    ]
    found = differences(coco_r50_fpn_1x.get_config(), coco_panoptic_fpn_r50_1x.get_config())
    assert [line.partition(":")[0] for line in found] == ["model.heads", "data.source.panoptic_file"]
    found = differences(coco_r50_fpn_1x.get_config(), coco_r101_fpn_3x.get_config())
    assert {line.partition(":")[0] for line in found} == {
        "model.backbone.bottom_up.depth",
        "pretrained",
        "schedule.decay.milestones",
        "steps",
        "eval_every",
        "checkpoint_every",
    }


def test_vitdet_sees_the_squares_that_its_positions_are_for() -> None:
    from mask_rcnn_jax.configs import coco_vitdet_b_100ep

    config = coco_vitdet_b_100ep.get_config()
    side = config.model.backbone.bottom_up.image_size
    assert (config.data.canvas, config.data.max_side, config.data.short_side_eval) == ((side, side), side, side)
    assert config.steps * config.batch_size == 100 * 118_000  # epochs of COCO


FOLDERS = [ROOT / "docs", ROOT / "examples", ROOT / "configs"]
DOCUMENTS = [ROOT / "README.md", *(path for folder in FOLDERS for path in folder.iterdir())]


def documented() -> list[tuple[str, str]]:
    """Every command that a document or a file's docstring shows: its name, and what follows."""
    texts = [path.read_text().replace("\\\n", " ") for path in DOCUMENTS if path.suffix in (".md", ".py")]
    shown = re.compile(r"^ {4,}mask-rcnn ([a-z-]+) (.*)$", re.MULTILINE)
    return sorted({found for text in texts for found in shown.findall(text)})


@pytest.mark.parametrize(("command", "rest"), documented())
def test_commands_in_documents_have_options_that_there_are(command: str, rest: str, capsys) -> None:
    def told(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main([*arguments, "--help"])
        return capsys.readouterr().out

    text, first = told(command), rest.split()[0]
    if f"\n    {first} " in text:  # a command of the command's own
        text = told(command, first)
    assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= set(re.findall(r"--[a-z-]+", text)) | {"--plugin"}
