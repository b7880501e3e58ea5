"""Writes a model as StableHLO, to be run by `runtime` wherever JAX runs.

The file is a zip without compression: `metadata.json`, `program.bin` (of `jax.export`: StableHLO for CPU, CUDA and TPU,
which takes the weights first), and `weights/NUMBER.npy` in the order of its arguments. One model and one jax give the
same bytes, whenever and in whatever folder it is exported.
"""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax import export

from mask_rcnn_jax.disk.files import replacing
from mask_rcnn_jax.export.program import Exportable, abstract_inputs, metadata, program
from mask_rcnn_jax.export.runtime import FORMAT, PLATFORMS


def export_stablehlo(exportable: Exportable, path: Path) -> None:
    """Writes the file `path`."""
    leaves, structure = jax.tree.flatten(exportable.variables)
    settings = exportable.settings
    run = program(exportable.config, settings)

    def on_leaves(weights, images, sizes):
        return run(structure.unflatten(weights), images, sizes)

    batch = export.symbolic_shape("batch")[0] if settings.batch is None else settings.batch
    weights = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    with _without_source_files():
        exported = export.export(jax.jit(on_leaves), platforms=PLATFORMS)(weights, *abstract_inputs(settings, batch))
    described = metadata(exportable) | {"format": FORMAT, "platforms": list(PLATFORMS), "weights": len(leaves)}
    with replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
        # By a `ZipInfo`, whose date is a fixed one.
        archive.writestr(zipfile.ZipInfo("metadata.json"), json.dumps(described, indent=2))
        archive.writestr(zipfile.ZipInfo("program.bin"), bytes(exported.serialize()))
        for number, leaf in enumerate(leaves):
            with archive.open(zipfile.ZipInfo(f"weights/{number}.npy"), "w", force_zip64=True) as file:
                np.save(file, np.asarray(leaf))


@contextmanager
def _without_source_files() -> Iterator[None]:
    """Keep the places of the code, which are paths of this machine, out of what is lowered."""
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)
