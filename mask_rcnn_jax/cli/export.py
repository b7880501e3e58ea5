"""`mask-rcnn export --checkpoint DIR --out FILE`: writes a model, from an image's bytes to detections, as one file.

FILE.stablehlo runs wherever JAX does, on CPU, CUDA or TPU; FILE.onnx in ONNX Runtime. `mask_rcnn_jax.export.runtime`
loads either.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.model import add_model_options, model_of
from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.data.config import CANVAS_DIVISOR
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.disk.places import check_place
from mask_rcnn_jax.errors import UserError, printable
from mask_rcnn_jax.export.program import Exportable, ExportSettings
from mask_rcnn_jax.export.resize import Preprocessing
from mask_rcnn_jax.export.stablehlo import export_stablehlo
from mask_rcnn_jax.extras import require


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, exports, and returns the exit status."""
    options = _parser().parse_args(arguments)
    return run(lambda: _export(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mask-rcnn export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="what to write: .stablehlo or .onnx")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where no earlier export has written it")
    parser.add_argument(
        "--input",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="pixels of the largest image that it takes (default: the canvas)",
    )
    parser.add_argument(
        "--canvas",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="pixels at which the model sees images, resized to fit (default: the evaluation's landscape canvas)",
    )
    parser.add_argument(
        "--batch", default="1", metavar="N|any", help="images a call; any: left open, StableHLO only (default: 1)"
    )
    parser.add_argument(
        "--paste-masks", action="store_true", help="masks as bitmaps of the input's size, not as grids inside the boxes"
    )
    return parser


def _export(options: argparse.Namespace) -> None:
    check_place("--out", options.out)
    _check_out(options.out)
    outputs = OutputFolder(options.out.parent, overwrite=options.overwrite)
    outputs.check([options.out])
    batch = _batch(options.batch, options.out)
    model = model_of(options)
    settings = export_settings(
        model.data, options.input, options.canvas, batch, options.paste_masks, model.canvas_divisor
    )
    if settings.paste_masks and model.config.mask_head is None:
        raise UserError("--paste-masks: the model has no masks; leave it away")
    exportable = Exportable(model.config, model.variables, model.class_names, settings, model.licence)
    try:
        with outputs.replacing(options.out) as part:
            if options.out.suffix == ".onnx":
                from mask_rcnn_jax.export.to_onnx import export_onnx

                export_onnx(exportable, part)
            else:
                export_stablehlo(exportable, part)
    except OSError as error:
        raise UserError(
            f"--out {options.out} cannot be written: {error.strerror or error}; name another file"
        ) from None
    height, width = settings.input_size
    images = "any number of images" if batch is None else f"{batch} image{'s' if batch > 1 else ''}"
    if model.licence:
        print(f"licence of the weights, which the file states too: {printable(model.licence)}")
    print(
        f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, {images} of up to {width} x {height} pixels a call"
    )


def export_settings(
    data: DataConfig,
    input_size: Sequence[int] | None = None,
    canvas: Sequence[int] | None = None,
    batch: int | None = 1,
    paste_masks: bool = False,
    divisor: int = CANVAS_DIVISOR,
) -> ExportSettings:
    """Return the export settings of a model that is evaluated as `data` says; sizes are (height, width) in pixels.

    Raises UserError for a size that cannot be.
    """
    height, width = canvas or data.in_evaluation().canvas
    if height <= 0 or width <= 0 or height % divisor or width % divisor:
        raise UserError(f"--canvas {height} {width}: give positive multiples of {divisor}")
    input_height, input_width = input_size or (height, width)
    if input_height <= 0 or input_width <= 0:
        raise UserError(f"--input {input_height} {input_width}: give positive numbers of pixels")
    preprocessing = Preprocessing(data.short_side_eval, data.max_side, (height, width), data.resize)
    return ExportSettings((input_height, input_width), preprocessing, batch, paste_masks)


def _check_out(out: Path) -> None:
    """Raises UserError for what can be known to fail before the checkpoint is read."""
    if out.suffix not in (".onnx", ".stablehlo"):
        raise UserError(f"--out {out}: its name must end in .stablehlo or .onnx, which says what to write")
    if is_folder(out):
        raise UserError(f"--out {out} is a folder; name a file")
    if not is_folder(out.parent):
        raise UserError(f"--out {out}: the folder {out.parent} does not exist; make it first")
    if out.suffix == ".onnx":
        require("onnx", f"--out {out}")


def _batch(text: str, out: Path) -> int | None:
    if text == "any" and out.suffix == ".stablehlo":
        return None
    if text == "any":
        raise UserError("--batch any: an ONNX file takes a fixed number of images a call; give a number")
    if not re.fullmatch("0*[1-9][0-9]{0,5}", text):
        raise UserError(f"--batch {text}: give a positive number, or any")
    return int(text)
