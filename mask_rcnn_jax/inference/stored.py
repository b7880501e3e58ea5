"""Looks into what Orbax stores, without Orbax, to tell what is broken from everything else that may fail.

An item of a checkpoint is a folder with an OCDBT database, in which each array is a Zarr array, and JSON files beside
it. Orbax raises a plain Exception for a file that is missing, for a disk that fails, and for arrays that were not
asked for.
"""

import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from mask_rcnn_jax.disk.places import step_of
from mask_rcnn_jax.errors import UserError

# tensorstore's statuses of bytes that are missing or wrong; an invalid one, of bytes that make no sense, is not named.
_BROKEN = {None, "DATA_LOSS", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION"}
# What tensorstore says of bytes that are well-formed, and of a later form than it knows.
_LATER = re.compile("Maximum supported version|Unsupported compression format|Error parsing object member|Expected obj")
# What Orbax and `training.checkpoint` put into a checkpoint, and into each of its items.
_FAMILIAR = re.compile(
    r"model|optimizer|average|metadata|evaluation\.json|_CHECKPOINT_METADATA|commit_success\.txt"
    r"|_METADATA|_sharding|array_metadatas|manifest\.ocdbt|ocdbt\.process_\d+|d|\..*"
)


_DICT = 2  # Orbax's type of a key; all that is saved are dicts of arrays


class Damaged(Exception):
    """A file of a finished checkpoint is missing, or its bytes cannot be decoded; the message says which."""


class Unfamiliar(Exception):
    """A checkpoint has another layout, as a later Orbax may write, and may well be whole; the message says which."""


def read_json(file: Path) -> Any:
    """Return what a JSON file of a checkpoint holds. Raises as `stored_shapes` does."""
    with _told_apart(file):
        return json.loads(file.read_bytes())


def stored_shapes(item: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of an item by its dotted name, without reading the arrays.

    Raises `Damaged` where a file is missing or cannot be decoded, `Unfamiliar` where the item has another layout, and
    `OSError` where the disk fails.
    """
    with _told_apart(item):
        tree = read_json(item / "_METADATA")
        if tree.get("use_zarr3") or not tree.get("use_ocdbt", True):
            raise Unfamiliar(f"{item.name} has its arrays in another format")
        named = _named(item, tree["tree_metadata"])
        # Arrays that were NumPy's have neither of these.
        present = os.listdir(item)
        listed: set[str] = set()
        if "_sharding" in present:
            read_json(item / "_sharding")
        for name in sorted(os.listdir(item / "array_metadatas") if "array_metadatas" in present else ()):
            arrays = read_json(item / "array_metadatas" / name)["array_metadatas"]
            for array in (entry["array_metadata"] for entry in arrays):
                if not all(isinstance(array[key], list) for key in ("write_shape", "chunk_shape")):
                    raise _lacking(item, f"{array['param_name']} has no shape in {name}")
                listed.add(array["param_name"])
        keys = [key.decode() for key in tensorstore.KvStore.open(_store(item)).result().list().result()]
        stored = {key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray")}
        if not stored or not listed <= stored or named != stored:
            first = min((listed | named) ^ stored, default="arrays")
            raise _lacking(item, f"{first} is not both listed and stored")
        return {name: tuple(_open(item, name).shape) for name in sorted(stored)}


def _named(item: Path, tree: Mapping[str, Any]) -> set[str]:
    """The dotted names of a tree's arrays, where Orbax can make the nested dicts of it that are asked for."""
    named: set[str] = set()
    for path, entry in tree.items():
        keys = [key["key"] for key in entry["key_metadata"]]
        is_empty = bool(entry["value_metadata"].get("skip_deserialize"))
        # Empty dicts have nothing stored that a changed name would contradict, but each path is written twice.
        if path != str(tuple(keys)) or any(key["key_type"] != _DICT for key in entry["key_metadata"]):
            raise _lacking(item, f"{path[:100]} is not listed as what it is")
        if is_empty != (entry["value_metadata"]["value_type"] == "Dict"):
            raise _lacking(item, f"{path[:100]} is listed as something else")
        if not is_empty:
            named.add(".".join(map(str, keys)))
    return named


def check_readable(item: Path, names: Iterable[str]) -> None:
    """Read the arrays of an item, one after the other. Raises as `stored_shapes` does."""
    written = _stored_checksums(item)
    for name in names:
        with _told_apart(item):
            array = _open(item, name).read().result()
        if name in written and checksum(array) != written[name]:
            raise Damaged(f"{name} has other bytes than were written")


def checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of an array's bytes; what is stored has none where it does not compress."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _stored_checksums(item: Path) -> Mapping[str, int]:
    """The checksum of each array by name, from the item `metadata`; older checkpoints have none."""
    try:
        metadata = read_json(item.parent / "metadata" / "metadata")
    except Damaged:
        return {}
    for key in ("checksums", item.name):
        if not isinstance(metadata, dict):
            raise Unfamiliar("the checksums of the metadata are no table")
        metadata = metadata.get(key, {})
    if not isinstance(metadata, dict) or not all(type(value) is int for value in metadata.values()):
        raise Unfamiliar(f"the checksums of {item.name} in the metadata are no whole numbers by name")
    return metadata


def disk_error(error: BaseException) -> OSError | None:
    """Return the system's own error where one is what went wrong, or the one that Orbax makes of it, without a number.

    Tensorstore only quotes it, and Orbax says where it read, with tensorstore's error as the cause.
    """
    if isinstance(error, OSError):
        return error
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    text = str(error.args[0]) if error.args else ""
    if re.match(
        "Encountered error while reading array|Item .* was not found|Checkpoint directory does not exist", text
    ):
        # It was whole a moment ago.
        cause = error.__cause__ or error.__context__
        return (cause and disk_error(cause)) or OSError(str(cause or text).partition("\n")[0][:160])
    return error.__cause__ and disk_error(error.__cause__)


@contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """Give a path to `folder` that Orbax and tensorstore can use.

    They take some names for patterns or URLs, and none that is not Unicode: those are reached by a link in the
    temporary folder. Raises `UserError` where there can be none.
    """
    folder = folder.resolve()
    if _is_plain(folder):
        yield folder
        return
    what = f"the name of {folder} holds characters that need a link to it in the temporary folder"
    try:
        holder = tempfile.TemporaryDirectory(prefix="mask-rcnn-")
    except OSError as error:
        raise UserError(f"{what}, which cannot be written ({error.strerror or error}); rename the folder") from None
    with holder as temporary:
        link = Path(temporary).resolve() / "link"
        if not _is_plain(link):
            raise UserError(f"{what}, but that of {temporary} holds such as well; set TMPDIR to another")
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _is_plain(path: Path) -> bool:
    return re.fullmatch(r"[\w/. +,=@#%-]+", str(path)) is not None


def _store(item: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{item}/"}}


def _open(item: Path, name: str) -> Any:
    spec = {"driver": "zarr", "kvstore": {**_store(item), "path": f"{name}/"}, "fill_missing_data_reads": False}
    return tensorstore.open(spec, open=True).result()


@contextmanager
def _told_apart(path: Path) -> Iterator[None]:
    """Turns what is raised of bytes that are missing or wrong into `Damaged`, of others that are sound into
    `Unfamiliar`, and leaves the rest."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise _lacking(path, f"{os.path.basename(error.filename or path)}: {error.strerror}") from error
    except (KeyError, TypeError, AttributeError) as error:  # of JSON that is another
        raise Unfamiliar(f"{path.name} holds something else ({type(error).__name__})") from error
    except RecursionError as error:
        raise Damaged(f"{path.name} is nested too deeply") from error
    except ValueError as error:
        if (fault := disk_error(error)) is not None:
            raise OSError(fault.errno, fault.strerror, str(path)) from error
        status = re.match(r"([A-Z]+(?:_[A-Z]+)*): ", str(error))
        if (status and status[1]) not in _BROKEN:
            raise
        kind = Unfamiliar if _LATER.search(str(error)) else Damaged
        raise kind(f"{path.name}: {next(iter(str(error).splitlines()), 'not readable')[:160]}") from error


def _lacking(path: Path, reason: str) -> Exception:
    """`Damaged` of a checkpoint that lacks something, `Unfamiliar` where it has something else in its place."""
    checkpoint = next((folder for folder in (path, *path.parents) if step_of(folder.name) is not None), None)
    found = [] if checkpoint is None else [*checkpoint.glob("*"), *checkpoint.glob("*/*")]
    other = min((file for file in found if not _FAMILIAR.fullmatch(file.name)), default=None)
    return Damaged(reason) if other is None else Unfamiliar(f"{other.parent.name} holds {other.name}")
