"""Fine-tuning on real images in torchvision and here, all else equal.

`python -m tests.conformance.finetuning [--write docs/conformance.md]` writes the last section of that file.

Both programs start from the same weights, of the heads too, and take the same images, flipped alike, in the same order,
with the same optimizer and schedule. Each makes its own proposals and draws its own samples, so that their courses part
after the first step: what is compared is curves of losses and AP over several seeds, beside the spread of seeds.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np
import torch
from torch import nn

from mask_rcnn_jax.data import CocoDataset, read_image
from mask_rcnn_jax.models import MaskRCNNConfig
from mask_rcnn_jax.training import ExperimentConfig, ScheduleConfig, SGDConfig, StepDecay
from mask_rcnn_jax.training.step import init_state, make_train_step
from tests.conformance import trained, training
from tests.conformance.average_precision import CANVAS, METRICS, evaluated, reference_results, score
from tests.conformance.reference import tensors
from tests.conformance.sources import dataset, imported, target
from tests.conformance.training import Inputs

COMMAND = "python -m tests.conformance.finetuning"
DATA = "balloon"
STEPS, BATCH = 240, 2
LOSS_EVERY, AP_EVERY = 40, 80  # steps
SCHEDULE = ScheduleConfig(
    learning_rate=0.01, warmup_steps=40, warmup_factor=0.001, decay=StepDecay(milestones=(180,), factor=0.1)
)
OPTIMIZER = SGDConfig(momentum=0.9, weight_decay=1e-4, weight_decay_norm=0.0, clip_norm=10.0)

HEADING = "## Fine-tuning\n"
INTRODUCTION = f"""A ResNet-18-FPN, partly from ImageNet, is trained on balloon's 61 images for {STEPS} steps of
{BATCH} images and evaluated on its 13 others, in torchvision and here: the same weights at the start, of the heads too,
the same images in the same order, flipped alike, the same optimizer and schedule. Each program makes its own proposals
and draws its own samples, so that they part after the first step: what can agree are the curves. Mean of the seeds, ±
half of the range between them; losses are means of {LOSS_EVERY} steps. `{COMMAND}`, in float32.
"""


@dataclass(frozen=True)
class Course:
    """One fine-tuning: each loss at each step, and AP after every `AP_EVERY` steps."""

    losses: list[dict[str, float]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)


def reference_course(seed: int) -> Course:
    model = start(seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, SCHEDULE.learning_rate, momentum=OPTIMIZER.momentum, weight_decay=OPTIMIZER.weight_decay
    )
    rate = SCHEDULE.build(STEPS)
    course, val = Course(), dataset(DATA)
    for step, inputs in enumerate(batches(model, seed)):
        for group in optimizer.param_groups:
            group["lr"] = float(rate(step))
        found = training.reference_losses(model, inputs, torch.float32)
        optimizer.zero_grad()
        sum(found.values()).backward()
        nn.utils.clip_grad_norm_(parameters, OPTIMIZER.clip_norm)
        optimizer.step()
        course.losses.append({training.LOSSES[name]: value.item() for name, value in found.items()})
        if (step + 1) % AP_EVERY == 0:
            course.metrics.append(score(val, list(reference_results(model.eval(), val))))
            model.train()
    return course


def our_course(seed: int) -> Course:
    model = start(seed)
    config = ExperimentConfig(
        model=model_config(), optimizer=OPTIMIZER, schedule=SCHEDULE, steps=STEPS, batch_size=BATCH, seed=seed
    )
    slots = max(int(np.sum(~record.iscrowd)) for record in dataset(DATA, "train").records)
    state = init_state(config, imported(config.model, model))
    step_fn = make_train_step(config, jax.sharding.Mesh(jax.devices()[:1], ("data",)))
    course, val = Course(), dataset(DATA)
    for step, inputs in enumerate(batches(model, seed)):
        batch = training.training_batch(config.model, inputs, slots)
        batch = replace(batch, example_index=np.arange(step * BATCH, (step + 1) * BATCH, dtype=np.int32))
        state, measures = step_fn(state, batch)
        course.losses.append({name: float(measures[name]) for name in training.LOSSES.values() if name in measures})
        if (step + 1) % AP_EVERY == 0:
            course.metrics.append(evaluated(config.model, state.variables, val))
    return course


def model_config() -> MaskRCNNConfig:
    """The model of `trained`, and how many proposals and samples it trains on."""
    model = trained.config(num_classes=1)
    rpn, box_head = replace(model.rpn, post_nms_train=500), replace(model.box_head, samples=256)
    return replace(model, rpn=rpn, box_head=box_head)


def start(seed: int) -> nn.Module:
    """torchvision's model with a ResNet-18 from ImageNet and the seed's heads; it trains what `model_config` trains."""
    torch.manual_seed(seed)
    model = trained.untrained(num_classes=1).train()
    model.transform.size_divisible = CANVAS  # every batch is as large as the canvas
    for frozen in (model.backbone.body.conv1, model.backbone.body.layer1):
        frozen.requires_grad_(False)
    return model


def batches(model: nn.Module, seed: int) -> Iterator[Inputs]:
    """The seed's batches of the training images, as the reference resizes them; half are mirrored."""
    train, random = dataset(DATA, "train"), np.random.default_rng(seed)
    count = len(train.records)
    order = np.concatenate([random.permutation(count) for _ in range(STEPS * BATCH // count + 1)])
    for step in range(STEPS):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        examples = [example(train, int(index), mirrored=bool(random.integers(2))) for index in chosen]
        images, targets = model.transform([image for image, _ in examples], [truth for _, truth in examples])
        yield Inputs(images.tensors, images.image_sizes, targets, [])


def example(train: CocoDataset, index: int, mirrored: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    record = train.records[index]
    (image,), truth = tensors([read_image(record.path)]), target(record, 1)
    if mirrored:
        boxes = truth["boxes"].clone()
        boxes[:, [0, 2]] = record.width - boxes[:, [2, 0]]
        image, truth = image.flip(-1), truth | {"boxes": boxes, "masks": truth["masks"].flip(-1)}
    return image, truth


def table(ours: list[Course], reference: list[Course]) -> str:
    """Mean and half the range over the seeds: losses by window of steps, and AP."""
    lines = ["| | torchvision | this project |", "|---|--:|--:|"]
    for name in training.LOSSES.values():
        if name in ours[0].losses[0]:
            for first in range(0, STEPS, LOSS_EVERY):
                cells = (_spread([_mean(course, name, first) for course in courses]) for courses in (reference, ours))
                lines.append(f"| {name}, steps {first + 1} to {first + LOSS_EVERY} | {' | '.join(cells)} |")
    for name in METRICS:
        for i, step in enumerate(range(AP_EVERY, STEPS + 1, AP_EVERY)):
            cells = (_spread([course.metrics[i][name] for course in courses]) for courses in (reference, ours))
            lines.append(f"| {name} after {step} steps | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(course: Course, name: str, first: int) -> float:
    return float(np.mean([losses[name] for losses in course.losses[first : first + LOSS_EVERY]]))


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", type=Path, metavar="PATH", help="also write the section to this file")
    arguments = parser.parse_args()
    ours, reference = [], []
    for seed in arguments.seeds:
        for runs, course in ((reference, reference_course), (ours, our_course)):
            runs.append(course(seed))
            found = ", ".join(f"{name} {runs[-1].metrics[-1][name]:.3f}" for name in METRICS)
            print(f"seed {seed}, {course.__name__}: {found}", file=sys.stderr, flush=True)
    section = f"{HEADING}{INTRODUCTION}Seeds {', '.join(map(str, arguments.seeds))}.\n\n{table(ours, reference)}\n"
    print(section)
    if arguments.write:
        arguments.write.write_text(f"{divided(arguments.write)[0]}\n{section}")
    return 0


def divided(document: Path) -> tuple[str, str]:
    """Divides a document into what stands before this section, which is its last, and the section."""
    before, heading, section = document.read_text().partition(f"\n{HEADING}")
    return before, heading + section


if __name__ == "__main__":
    sys.exit(main())
