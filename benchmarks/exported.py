"""An exported model beside torchvision's own export of the same weights, in ONNX Runtime and in OpenVINO.

    python -m benchmarks.exported                       both runtimes, in three processes one after the other
    python -m benchmarks.exported --only OpenVINO --rounds 3 --processes 1

Run it from the repository's root; it needs torchvision, onnx and onnxruntime, and for its row OpenVINO. Each file takes
one image of 512 x 512 and gives boxes, scores, classes and probabilities of masks inside the boxes: pasting, which
torchvision exports as a loop that OpenVINO refuses, is left out of both. Results are compared before anything is timed;
`side_by_side` says how time is taken.
"""

import argparse
import functools
import importlib.util
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # as the runtimes run here

import numpy as np
import torch

from benchmarks.machine import in_a_process, machine, sentence, write
from benchmarks.models import NUM_CLASSES, Pair, pair
from benchmarks.side_by_side import Row, Sides, measure, summary, table
from mask_rcnn_jax.export.program import Exportable, ExportSettings
from mask_rcnn_jax.export.resize import Preprocessing
from mask_rcnn_jax.export.to_onnx import export_onnx

Model = Callable[[list[np.ndarray]], list[np.ndarray]]  # inputs and outputs in the file's order

# Random weights enlarge what is rounded differently; whatever finds other things is off by more.
_PIXELS, _SCORES = 0.5, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RUNTIMES, help="only these runtimes")
    parser.add_argument("--rounds", type=int, default=7, help="how often each runs in a process (default: 7)")
    parser.add_argument("--processes", type=int, default=3, help="how many, in turn (default: 3)")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/exported.json"), help="file of the figures")
    parser.add_argument("--quick", action="store_true", help="little work, one round: shows that it runs")
    parser.add_argument("--once", type=Path, metavar="FOLDER", help="measures in this process, with these files")
    options = parser.parse_args()
    installed = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]
    names = [name for name in options.only or RUNTIMES if name in installed]
    if not names:
        sys.exit("none of these runtimes is installed")
    if options.once:
        print(
            json.dumps([measure(sides(name, options.once), 1 if options.quick else options.rounds) for name in names])
        )
        return
    about = machine("onnxruntime", "openvino", "torch", "torchvision")
    with tempfile.TemporaryDirectory() as folder:
        files(Path(folder), pair("v1", (128, 128), 8) if options.quick else pair("v1", (512, 512)))
        arguments = ["--once", folder, "--rounds", options.rounds, *(["--quick"] * options.quick), "--only", *names]
        runs = [in_a_process("benchmarks.exported", *arguments) for _ in range(options.processes)]
    rows = [Row(name, functools.partial(sides, name), 1.0) for name in names]
    report = [summary(row.name, row.target, of_row) for row, *of_row in zip(rows, *runs, strict=True)]
    write(options.json, about, report)
    print(sentence(about))
    print(table(report))
    print(f"written to {options.json}")


def files(folder: Path, models: Pair) -> None:
    """Write `ours.onnx`, `theirs.onnx` and the image that they are given."""
    settings = ExportSettings(models.size, Preprocessing(*models.size, models.size, "torchvision"))
    classes = tuple(map(str, range(NUM_CLASSES)))
    export_onnx(Exportable(models.config, models.variables, classes, settings), folder / "ours.onnx")
    models.model.transform.postprocess = lambda result, *_: result
    pixels = torch.from_numpy(models.image).permute(2, 0, 1).float() / 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, on what tracing fixes
        # By TorchScript: the other exporter asks for another package, onnxscript.
        torch.onnx.export(models.model, ([pixels],), str(folder / "theirs.onnx"), dynamo=False, opset_version=18)
    np.save(folder / "image.npy", models.image)


def sides(runtime: str, folder: Path) -> Sides:
    """Return both models in a runtime. Raises AssertionError where they do not find the same."""
    image = np.load(folder / "image.npy")
    ours, theirs = (RUNTIMES[runtime](folder / name) for name in ("ours.onnx", "theirs.onnx"))
    inputs = [image[None], np.array([image.shape[:2]], np.int32)], [np.float32(image).transpose(2, 0, 1) / 255]
    boxes, _, masks, scores, valid = ours(inputs[0])
    their_boxes, _, their_scores, their_masks = theirs(inputs[1])
    assert valid.sum() == len(their_scores) > 0, (valid.sum(), len(their_scores))
    np.testing.assert_allclose(scores[valid], their_scores, atol=_SCORES)
    near = np.abs(boxes[valid] - their_boxes).max(1) < _PIXELS
    assert near.mean() > 0.9, near.mean()  # others have changed places with one of nearly the same score
    np.testing.assert_allclose(masks[valid][near], their_masks[near, 0], atol=0.1)
    return Sides(lambda: ours(inputs[0]), {"torchvision": lambda: theirs(inputs[1])})


def _onnx_runtime(path: Path) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _openvino(path: Path) -> Model:
    import openvino

    # It takes bfloat16 where a processor has it.
    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda arrays: [np.asarray(array) for array in model(arrays).values()]


RUNTIMES: dict[str, Callable[[Path], Model]] = {"ONNX Runtime": _onnx_runtime, "OpenVINO": _openvino}
PACKAGES = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}

if __name__ == "__main__":
    main()
