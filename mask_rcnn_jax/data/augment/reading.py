"""One sample to train on: a record read and augmented.

Random choices are drawn in a fixed order from the generator handed in, so a sample depends on that generator's seed
alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Num
from PIL import Image

from mask_rcnn_jax.data.augment import steps, transforms
from mask_rcnn_jax.data.augment.keypoint_flips import mirrored
from mask_rcnn_jax.data.augment.sample import Sample
from mask_rcnn_jax.data.config import DataConfig
from mask_rcnn_jax.data.records import Record
from mask_rcnn_jax.data.verify import size_mismatch
from mask_rcnn_jax.errors import UserError

Step = Callable[[Sample, np.random.Generator], Sample]


def read_picture(record: Record, config: DataConfig) -> Image.Image:
    """The record's image in RGB; `UserError` when it cannot be read or is not of the annotated size."""
    picture = transforms.open_image(record.path, config.max_pixels, record.open)
    if picture.size != (record.width, record.height):
        raise UserError(size_mismatch(record, picture.height, picture.width))
    return picture


def read_resized(record: Record, short_side: int, config: DataConfig) -> Num[np.ndarray, "H W 3"]:
    """The record's image with its short side at `short_side`; `UserError` as `read_picture`."""
    size = transforms.resized_size(record.height, record.width, short_side, config.max_side, config.resize)
    return transforms.resize_picture(read_picture(record, config), size, config.resize)


def training_sample(
    record: Record,
    config: DataConfig,
    rng: np.random.Generator,
    keypoint_names: Sequence[str] = (),
    donors: Sequence[Record] = (),
    short_side: int | None = None,
) -> Sample:
    """Reads and augments one record. Crowds are left out. Its `short_side` is drawn, too, unless given.

    `keypoint_names` are those of the record's dataset: they tell which change places in a mirror. `donors` are the
    records from which copy-paste draws. Raises `UserError` when an image cannot be read.
    """
    limit: Step = partial(steps.limit_instances, config=config)
    flip: Step = partial(steps.flip_and_turn, config=config, mirrored=mirrored(keypoint_names, config.keypoint_flips))
    chain = [limit, flip]
    if config.copy_paste > 0 and donors:

        def draw_donor(rng: np.random.Generator) -> Sample:
            donor = donors[int(rng.integers(len(donors)))]
            return flip(limit(_read(donor, config, rng), rng), rng)

        chain += [partial(steps.copy_paste, config=config, draw_donor=draw_donor), limit]
    sample = _read(record, config if short_side is None else replace(config, short_side=(short_side,)), rng)
    for step in chain:
        sample = step(sample, rng)
    return sample


def _read(record: Record, config: DataConfig, rng: np.random.Generator) -> Sample:
    """The record's image as it comes from the file, with another colour if so set, resized and cut out."""
    picture = read_picture(record, config)
    if config.color_jitter is not None:
        picture = steps.color_jitter(picture, config.color_jitter, rng)
    resize = steps.shortest_edge if config.large_scale_jitter is None else steps.large_scale_jitter
    return resize(picture, record, config, rng)
