"""The contract of a source: where a dataset comes from, whatever its format."""

import abc

from mask_rcnn_jax.data.records import CocoDataset


class SourceConfig(abc.ABC):
    """Settings of a source. A dataclass that derives from this class may stand wherever a configuration has a source.

    `docs/extending.md` shows one.
    """

    train_split: str = "train"  # the splits that a run trains and is evaluated on; settings where they are fields
    val_split: str = "val"

    @abc.abstractmethod
    def load(self, split: str) -> CocoDataset:
        """Read a split, and write nothing: the settings may be those of a checkpoint of unknown origin.

        Raises `UserError` for what a person has to mend first. What cannot be used is left out and counted in
        `problems`.
        """

    def prepare(self) -> None:  # noqa: B027  most sources write nothing
        """Write what the source is made of where it is not there yet: of training by a configuration file alone.

        Raises `UserError` where anything else is in its place.
        """

    def check_prepared(self) -> None:  # noqa: B027
        """Raise `UserError` where something is missing that `prepare` would write."""
