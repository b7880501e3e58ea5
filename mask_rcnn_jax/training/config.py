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
    seed: int = 0
    log_every: int = 20  # steps
    eval_every: int = 5_000  # steps; the last step always evaluates; 0 only then
    checkpoint_every: int = 1_000  # steps; every evaluation saves as well

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
