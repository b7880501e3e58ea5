"""The configuration of an experiment: everything that decides its result."""

from dataclasses import dataclass

from mask_rcnn_jax.data import DataConfig
from mask_rcnn_jax.evaluation import EvaluationConfig
from mask_rcnn_jax.models import MaskRCNNConfig
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
    steps: int = 90_000
    batch_size: int = 16  # images a step, over all devices
    accumulation_steps: int = 1  # parts of the batch that follow one another; each needs a part of the memory
    images_per_device: int | None = None  # at once; None: as many as the batch has for each
    max_skipped_steps: int = 0  # steps in a row that may be skipped because a loss or gradient is not finite
    ema_decay: float = 0.0  # of an average of the weights, evaluated beside them; 0: none
    seed: int = 0
    log_every: int = 20  # steps
    eval_every: int = 5_000  # steps; the last step always evaluates; 0 only then
    checkpoint_every: int = 1_000  # steps; every evaluation saves as well

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation_steps", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.images_per_device is not None and self.images_per_device < 1:
            raise ValueError(f"images_per_device must be at least 1, not {self.images_per_device}")
        if self.max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps must not be negative, not {self.max_skipped_steps}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), not {self.ema_decay}")
