"""The mesh that a batch is shared on, and where its parts lie."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA_AXIS = "data"  # mesh axis over which a batch is sharded, and batch norm synchronised
ROWS, EVERYWHERE = P(DATA_AXIS), P()


def data_mesh(devices: Sequence[Any]) -> Mesh:
    """Return the mesh of devices that share the rows of a batch."""
    return Mesh(devices, (DATA_AXIS,))


def by_rows(mesh: Mesh) -> NamedSharding:
    """Return where arrays with a leading axis of images lie."""
    return NamedSharding(mesh, ROWS)


def everywhere(mesh: Mesh) -> NamedSharding:
    """Return where arrays lie that every device holds."""
    return NamedSharding(mesh, EVERYWHERE)
