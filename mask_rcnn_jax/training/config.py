"""The configuration of an experiment: everything that decides its result."""

from dataclasses import dataclass
from typing import Annotated

from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.evaluation import EvaluationConfig
from mask_rcnn_jax.models import MaskRCNNConfig
from mask_rcnn_jax.ranges import LARGEST, BelowOne, Incidental, NotNegative, Positive, Seed
from mask_rcnn_jax.training.optimizer import AdamWConfig, ScheduleConfig, SGDConfig


@dataclass(frozen=True)
class ExperimentConfig:
    model: MaskRCNNConfig = MaskRCNNConfig()
    data: DataConfig = DataConfig()
    optimizer: SGDConfig | AdamWConfig = SGDConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    # Where weights come from at step 0: a file of a backbone or a detector (.pth, .pkl, .safetensors, .npz), or the
    # folder of a run or an import.
    pretrained: str | None = None
    steps: Positive = 90_000
    batch_size: Positive = 16  # images a step, over all devices
    accumulation_steps: Positive = 1  # parts of the batch that follow one another; each needs a part of the memory
    # At once; None: as many as the batch has for each.
    images_per_device: Annotated[Positive | None, Incidental()] = None
    max_skipped_steps: NotNegative = 0  # steps in a row that may be skipped because a loss or gradient is not finite
    ema_decay: BelowOne = 0.0  # of an average of the weights, evaluated beside them; 0: none
    seed: Seed = 0
    log_every: Annotated[Positive, Incidental()] = 20  # steps
    eval_every: NotNegative = 5_000  # steps; the last step always evaluates; 0 only then
    checkpoint_every: Annotated[Positive, Incidental()] = 1_000  # steps; every evaluation saves as well

    def __post_init__(self) -> None:
        if self.steps * self.batch_size > LARGEST:
            raise ValueError(
                f"steps {self.steps} x batch_size {self.batch_size} must be at most {LARGEST}: examples are numbered"
                " by 32 bits"
            )
        if self.optimizer.layer_decay != 1 and not self.model.backbone.layers:
            raise ValueError(
                f"optimizer.layer_decay {self.optimizer.layer_decay} needs a backbone that numbers its layers, and that"
                " of model.backbone does not; set it to 1"
            )
        divisor = self.model.backbone.size_divisor
        for name, canvas in self.data.all_canvases:
            if any(side % divisor for side in canvas):
                raise ValueError(f"data.{name} {canvas}: model.backbone takes sides that are multiples of {divisor}")
