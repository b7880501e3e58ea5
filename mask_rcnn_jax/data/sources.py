"""Any source as a dataset."""

from mask_rcnn_jax.data.coco import load_coco
from mask_rcnn_jax.data.config import CocoConfig, LvisConfig, MixtureConfig, ShapesConfig, Source, TfdsConfig
from mask_rcnn_jax.data.lvis import load_lvis
from mask_rcnn_jax.data.mixture import mix
from mask_rcnn_jax.data.records import CocoDataset
from mask_rcnn_jax.data.shapes import check_shapes, prepare_shapes
from mask_rcnn_jax.data.tfds_source import load_tfds
from mask_rcnn_jax.errors import UserError


def prepare_source(source: Source) -> None:
    """Write the synthetic shapes that the source names and that are not there yet.

    Reading a source writes nothing: its settings may be those of a checkpoint of unknown origin. Raises UserError where
    their directory holds anything else.
    """
    for shapes in _shapes_of(source):
        prepare_shapes(shapes)


def check_prepared(source: Source) -> None:
    """Raise UserError where synthetic shapes that the source names are not there."""
    for shapes in _shapes_of(source):
        check_shapes(shapes)


def _shapes_of(source: Source) -> list[ShapesConfig]:
    sources = source.sources if isinstance(source, MixtureConfig) else (source,)
    return [part for part in sources if isinstance(part, ShapesConfig)]


def load_dataset(source: Source, split: str) -> CocoDataset:
    """Reads `split` of the source; a mixture's "train" is that of all its sources, and its "val" the first one's.

    Raises `UserError` for what a person has to mend first. What cannot be used is left out and counted in `problems`.
    """
    match source:
        case CocoConfig() | ShapesConfig():
            return load_coco(source, split)
        case LvisConfig():
            return load_lvis(source, split)
        case TfdsConfig():
            return load_tfds(source, split)
        case MixtureConfig():
            return _load_mixture(source, split)


def _load_mixture(config: MixtureConfig, split: str) -> CocoDataset:
    if not config.sources:
        raise UserError("data.source mixes no sources; list them in data.source.sources, in a config file.")
    if split == config.val_split:
        return load_dataset(config.sources[0], config.sources[0].val_split)
    if split != config.train_split:
        raise UserError(f"A mixture has the splits train and val, not '{split}'; name one of them.")
    return mix([load_dataset(source, source.train_split) for source in config.sources], config.weights)
