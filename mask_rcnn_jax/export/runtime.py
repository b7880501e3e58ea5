"""Runs an exported model: a file of `mask-rcnn export`, with JAX and NumPy or, where it ends in .onnx, ONNX Runtime.

Nothing else of the package is needed, so that this file may be copied to where the package is not:

    from mask_rcnn_jax.export.runtime import load

    model = load("model.stablehlo")
    (found,) = model.detect([pixels])  # uint8 RGB [height, width, 3]
    found["boxes"], found["scores"], [model.class_names[index] for index in found["classes"]]
"""

import errno
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "mask-rcnn-jax stablehlo 1"
PLATFORMS = ("cpu", "cuda", "tpu")
METADATA_KEY = "mask_rcnn_jax"  # of an ONNX file's properties
# Ends the name of the output that says how much of a map is the image's: `value_names.CELLS`, which is not imported.
CELLS = "_cells"

Arrays = dict[str, np.ndarray]


class BrokenFileError(ValueError):
    """A file that is no exported model, or of a version that cannot be read here."""


@dataclass(frozen=True)
class ExportedModel:
    """A model that takes batches of one shape.

    `call` takes images [B, H, W, 3], uint8 RGB, each in the top left corner of zeros, and their (height, width)
    [B, 2], int32. It gives arrays padded to D rows, best score first, of which `valid` [B, D] tells the real ones:
    `boxes` [B, D, 4] (x1, y1, x2, y2) in pixels, `scores` and `classes` [B, D], and what the model has of `masks` (B, D
    probabilities inside the boxes, or bitmaps [B, D, H, W]) and `keypoints` [B, D, J, 3] (x, y, score). What heads of
    others find has their names: values of instances [B, D, ...], and maps over the resized image with its padding
    [B, h, w, ...], of which `NAME_cells` [B, 2] are the (rows, columns) that the image touches; so are the logits of
    kinds of stuff, `stuff`.
    """

    class_names: tuple[str, ...]
    input_size: tuple[int, int]  # (H, W), pixels: the largest image
    batch: int | None  # images a call; None: any number, and each number compiles once
    metadata: Mapping[str, Any]
    call: Callable[[np.ndarray, np.ndarray], Arrays]

    def detect(self, images: Sequence[np.ndarray]) -> list[Arrays]:
        """Detect instances per image, uint8 RGB [height, width, 3]: the arrays of `call` without padding, and without
        `valid` and `NAME_cells`, which tell it.

        Raises ValueError for an image that is not of that kind, or larger than `input_size`.
        """
        return list(self._detections(images))

    def _detections(self, images: Sequence[np.ndarray]) -> Iterator[Arrays]:
        step = self.batch or max(1, len(images))
        for start in range(0, len(images), step):
            part = images[start : start + step]
            pixels, sizes = np.zeros((step, *self.input_size, 3), np.uint8), np.ones((step, 2), np.int32)
            for row, image in enumerate(part):
                self._check(image, start + row)
                height, width = image.shape[:2]
                pixels[row, :height, :width], sizes[row] = image, (height, width)
            found = self.call(pixels, sizes)
            for row in range(len(part)):
                arrays = _without_padding({name: array[row] for name, array in found.items()})
                if self.metadata["masks"] == "pasted" and "masks" in arrays:
                    arrays["masks"] = arrays["masks"][:, : sizes[row, 0], : sizes[row, 1]]
                yield arrays

    def _check(self, image: np.ndarray, number: int) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"image {number} is {image.dtype} {image.shape}, not uint8 RGB [height, width, 3]")
        if image.shape[0] > self.input_size[0] or image.shape[1] > self.input_size[1]:
            height, width = self.input_size
            raise ValueError(
                f"image {number} is {image.shape[1]} x {image.shape[0]}, larger than the model's input"
                f" {width} x {height}; make it smaller, or export with a larger --input"
            )


def _without_padding(found: Arrays) -> Arrays:
    """The arrays of one image: rows of instances that are valid, and cells of maps that the image touches."""
    told = {name: found[f"{name}{CELLS}"] for name in found if f"{name}{CELLS}" in found}
    kept = {}
    for name, array in found.items():
        if name in told:
            rows, columns = told[name]
            kept[name] = array[:rows, :columns]
        elif name != "valid" and name.removesuffix(CELLS) not in told:
            kept[name] = array[found["valid"]]
    return kept


def load(path: str | Path) -> ExportedModel:
    """The model of a file. Raises BrokenFileError, or OSError, naming the file where it cannot be loaded."""
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises for a long name
        raise FileNotFoundError(f"{path} does not exist")
    metadata, call = (_onnx if path.suffix == ".onnx" else _stablehlo)(path)
    if not _is_described(metadata):
        raise BrokenFileError(f"{path} does not describe its model; export it again")
    height, width = metadata["input_size"]
    return ExportedModel(tuple(metadata["class_names"]), (height, width), metadata["batch"], metadata, call)


def _is_described(metadata: Any) -> bool:
    """Tell whether a file says of its model what `ExportedModel` needs to know."""
    if not isinstance(metadata, dict) or not {"class_names", "input_size", "batch", "masks"} <= metadata.keys():
        return False
    names, size, batch = metadata["class_names"], metadata["input_size"], metadata["batch"]
    return (
        isinstance(names, list)
        and all(type(name) is str for name in names)
        and isinstance(size, list)
        and [type(side) for side in size] == [int, int]
        and min(size) > 0
        and (batch is None or (type(batch) is int and batch > 0))
    )


def _stablehlo(path: Path) -> tuple[Any, Callable[[np.ndarray, np.ndarray], Arrays]]:
    import jax
    from jax import export

    try:
        with zipfile.ZipFile(path) as archive:
            # Exports are not compressed: one that is might unpack to any size.
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise BrokenFileError(f"{path} is compressed, which no exported model is; export it again")
            metadata = json.loads(archive.read("metadata.json"))
            written_as = metadata.get("format") if isinstance(metadata, dict) else metadata
            if written_as != FORMAT:
                raise BrokenFileError(f"{path} is of format {written_as!r}; this reads {FORMAT!r}")
            weights = []
            for number in range(int(metadata["weights"])):
                with archive.open(f"weights/{number}.npy") as file:
                    weights.append(np.load(file))
            exported = export.deserialize(bytearray(archive.read("program.bin")))
    except BrokenFileError:
        raise
    except Exception as error:  # what is damaged may fail anywhere, in three libraries
        # The disk's own failures are no damage, but an archive may name a place before its start.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise BrokenFileError(f"{path} is no exported model, or only a part of one ({error})") from error
    compiled, on_device = jax.jit(exported.call), jax.device_put(weights)

    def call(images: np.ndarray, sizes: np.ndarray) -> Arrays:
        return jax.device_get(compiled(on_device, images, sizes))

    return metadata, call


def _exact(providers: Sequence[str]) -> list[str | tuple[str, dict[str, str]]]:
    """Return ONNX Runtime's providers, kept from TF32: an ONNX product cannot ask for its own precision, and resizing,
    coordinates and masks are products. TensorRT has no such switch.
    """
    options = {"CUDAExecutionProvider": {"use_tf32": "0"}}
    names = [name for name in providers if name != "TensorrtExecutionProvider"]
    return [(name, options[name]) if name in options else name for name in names]


def _onnx(path: Path) -> tuple[Any, Callable[[np.ndarray, np.ndarray], Arrays]]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=_exact(onnxruntime.get_available_providers()))
    except OSError:
        raise
    except Exception as error:  # its own kinds, and that of text that is not UTF-8
        raise BrokenFileError(f"{path} is no ONNX model, or only a part of one ({error})") from error
    properties = session.get_modelmeta().custom_metadata_map
    try:
        metadata = json.loads(properties[METADATA_KEY])
    except (KeyError, ValueError, RecursionError):
        raise BrokenFileError(f"{path} is an ONNX model, but not one of mask-rcnn export") from None
    names = [output.name for output in session.get_outputs()]

    def call(images: np.ndarray, sizes: np.ndarray) -> Arrays:
        results = session.run(names, {"images": images, "sizes": sizes})
        return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}

    return metadata, call
