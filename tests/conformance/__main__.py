"""Prints how far this project lies from its references: `python -m tests.conformance [--only NAME] [--write PATH]`."""

import argparse
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import torch
import torchvision

from tests.conformance import (
    average_precision,
    backbones,
    box_losses,
    detectron2,
    finetuning,
    stages,
    trained,
    training,
    trajectory,
)
from tests.conformance.golden import NAMES
from tests.conformance.needed import shared_folder
from tests.conformance.rows import Row, markdown
from tests.conformance.sources import SOURCES, case

COMMAND = "python -m tests.conformance"
INTRODUCTION = """# Conformance

The numbers of this project beside those of its references, from the same weights. Every row is the largest difference
that was found in one quantity of one stage, and the bound that it must stay within; the tests in `tests/conformance`
hold the same rows. Written by

    {command} --write {path}

with {versions}.

- **Stages**: each is given what the reference gave the stage before. *End to end*, each program starts from the
  original images.
- **torchvision** runs beside this project, with random weights that are scaled on real images until they detect about
  a hundred instances an image; three images of different sizes, portrait and landscape, make a batch. *Narrow* models
  have an eighth of the channels.
- **detectron2** is compared with its recorded outputs, of narrow models that were made in the same way;
  *fast_rcnn/roialign* has the weights and the features of *fast_rcnn*, and the same proposals. *detectron1* is read
  from the file that Detectron wrote. The normalised images of *fast_rcnn*, *pointrend*, *panoptic_fpn*, *vitdet* and
  *detectron1* are not recorded: their input is compared with NumPy's.
- *Training, every sample*, is a pass in which both samplers keep all there is, so that every level of a pyramid has a
  gradient. Norms of gradients stay within the others' bound or the reference's own difference between float32 and
  float64.
- Segments of *panoptic_fpn* are compared in their order, and pixel by pixel.
- PointRend's points of a subdivision are compared as sets; the logits at points, those that the reference chose, stay
  within the others' bound or the reference's own difference between float32 and float64.
- *relative* is relative to the reference tensor's largest value; *of the norm* compares the norm of a gradient's
  difference with that of the gradient, parameter by parameter. Boxes are matched by class and IoU.
- torchvision cuts boxes to whole pixels when it pastes masks: end to end, a box that differs by 1e-3 px can so differ
  by a pixel. The mean IoU is of both programs' own boxes; the smallest is of their masks in the reference's boxes.
- With PyTorch's convolutions in place of XLA's, every stage of X101's backbone is the recording's bits: norms and the
  division of the images are rounded as the reference rounds them. What is left is the order of sums. X101's features as
  a whole, and the scores that come of them, must stay within the bounds of the others (1e-4, 5e-4) or, on a machine
  whose sums are in another order still, within the reference's own difference between its convolutions with and without
  oneDNN: the recording is up to 3.7e-4 away from what the same weights give in float64, and its scores up to 1.3e-3.
- Training uses the same samples in both programs: both take the candidates of the lowest indices. In float32 the bound
  of the worst gradient is three times the reference's own difference between float32 and float64, which counts up to
  2e-3 (v1) and 3.5e-3 (v2). It is mostly that of activations near 0, and which of them rounding moves to the other side
  depends on the order of sums: on one processor (AMD EPYC) torchvision's wide v1 differs by 2.6e-4 in the contiguous
  memory format and by 5.0e-3 with channels last. So it is the larger of the two formats; channels last is this
  project's. Seeds of the random weights, and for the wide v2 how much its blocks add to what they pass on, are ones
  with which it is small.
- *Steps*: whole runs of SGD on the same three images, with warm-up, a step of the schedule, clipping, momentum and
  weight decay, each program with its own proposals (`tests/conformance/trajectory.py`; slow tests). Where batch norms
  take the statistics of three small images, rounding doubles from step to step, and after 24 steps samples part: v2's
  are ten. PyTorch's clipping adds 1e-6 to the norm; that is left out.
- The trained model is a ResNet-18-FPN that torchvision trained for {steps} steps on the {images} images that it is
  evaluated on.

## Traps
Each has a test that fails where one falls into it.

| trap | test |
|---|---|
| grouping by orientation that bunches classes | `tests/data/test_plan.py`: orientation decides no order |
| masks trained on predicted boxes | `tests/models/test_rcnn.py`: masks are learnt on proposals |
| a stride in the wrong convolution of a bottleneck | `tests/conformance/test_traps.py`; `tests/models/test_resnet.py` |
| statistics left as they were initialised | `tests/conformance/test_traps.py`; `tests/pretrained/test_convert.py` |
| test-time augmentation that drops the last class | `tests/inference/test_augmented.py` |
| `crop_and_resize` for RoIAlign | `tests/ops/test_roi_align.py`: golden values, loops, torchvision, Detectron2 |
| a threshold of NMS that is written into the code | `tests/conformance/test_traps.py`; `tests/ops/test_nms.py` |
| a gradient that is NaN through padded boxes | `tests/ops/test_boxes.py`; `tests/models/test_box_head.py` |
| box losses averaged by device | `tests/models/test_family.py`: two devices that compute again agree with one |

## Rows

"""


def torchvision_rows(name: str) -> Iterator[Row]:
    for stage in stages.stages_of(SOURCES[name]):
        yield from stages.STAGES[stage](case(name))
    if SOURCES[name].trained:
        yield from training.rows(name)
    if name in trajectory.STEPS:
        yield from trajectory.rows(name)


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME", help="the sources whose names contain this")
    parser.add_argument("--write", type=Path, metavar="PATH", help="also write the table to this file")
    arguments = parser.parse_args()
    sources = {name: lambda name=name: torchvision_rows(name) for name in SOURCES}
    sources |= {name: lambda name=name: backbones.rows(name) for name in backbones.BACKBONES}
    sources |= {box_losses.TORCHVISION: box_losses.torchvision_rows}
    sources |= {box_losses.DETECTRON2: lambda: box_losses.detectron2_rows(shared_folder())}
    sources |= {average_precision.SOURCE: average_precision.rows, trained.SOURCE: trained.rows}
    sources |= {f"detectron2 {name}": lambda name=name: detectron2.rows(shared_folder(), name) for name in NAMES}
    chosen = {name: make for name, make in sources.items() if arguments.only in name}
    if not chosen:
        parser.error(f"no source is called {arguments.only}; there are {', '.join(sources)}")
    rows = []
    for name, make in chosen.items():
        print(f"{name} ...", file=sys.stderr)
        for row in make():
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    table = markdown(rows)
    print(table)
    if arguments.write:
        versions = f"jax {jax.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}"
        introduction = INTRODUCTION.format(
            command=COMMAND,
            path=arguments.write,
            versions=f"{versions}, {platform.machine()}",
            steps=trained.STEPS,
            images=trained.NUM_IMAGES,
        )
        section = finetuning.divided(arguments.write)[1] if arguments.write.exists() else ""
        arguments.write.write_text(f"{introduction}{table}\n{section}")
    broken = [row for row in rows if not row.ok]
    print(f"{len(rows)} rows, {len(broken)} beyond their bound", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
