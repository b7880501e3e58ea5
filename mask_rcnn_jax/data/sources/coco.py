"""Reads a COCO-style directory into records, and says what it could not use."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mask_rcnn_jax.data.records import CocoDataset, Record
from mask_rcnn_jax.data.records.annotations import AnnotationReader
from mask_rcnn_jax.data.records.entries import check_annotation, check_category, check_image, read_json, refusal
from mask_rcnn_jax.data.records.packed import pack
from mask_rcnn_jax.data.semantic.attach import with_semantic
from mask_rcnn_jax.data.sources.base import SourceConfig
from mask_rcnn_jax.disk.files import is_file, is_folder
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.ranges import AddedLater, Incidental

__all__ = [
    "AnnotationFile",
    "CocoConfig",
    "CocoDataset",
    "Record",
    "check_present",
    "coco_dataset",
    "image_directory",
    "load_coco",
    "read_annotations",
]


@dataclass(frozen=True)
class CocoConfig(SourceConfig):
    """A directory in COCO's layout.

    Annotations are `root/annotations/annotation_file`; images lie in `root/{split}/` or `root/images/{split}/`.
    Splits are free names, such as "train2017". COCO's own keypoints are in "person_keypoints_{split}.json".

    For models with a semantic head `panoptic_file`, such as "panoptic_{split}.json", lists in COCO's panoptic format
    what every pixel shows; it lies beside the annotations, and so does the folder of its PNG files, which has the same
    name without suffix. `semantic_folder` is for training: "panoptic_stuff_{split}" below `root`, the PNG files that
    Detectron2's `prepare_panoptic_fpn.py` makes of them (0 things, 1.. stuff, 255 ignored), which are faster to read.
    """

    root: Annotated[str, Incidental()] = "data/coco"
    train_split: str = "train"
    val_split: str = "val"
    annotation_file: str = "instances_{split}.json"
    boxes_only: bool = False  # reads no segmentations: each mask is its box, for models without masks
    panoptic_file: Annotated[str | None, AddedLater()] = None
    semantic_folder: Annotated[str | None, AddedLater()] = None

    def __post_init__(self) -> None:
        if self.semantic_folder is not None and self.panoptic_file is None:
            raise ValueError("semantic_folder holds kinds of stuff that panoptic_file names; set panoptic_file too")

    def load(self, split: str) -> CocoDataset:
        dataset = load_coco(self, split)
        if self.panoptic_file is None:
            return dataset
        file = Path(self.root) / "annotations" / self.panoptic_file.replace("{split}", split)
        folder = self.semantic_folder and Path(self.root) / self.semantic_folder.replace("{split}", split)
        return with_semantic(dataset, file, folder or None)


@dataclass(frozen=True, eq=False)
class AnnotationFile:
    """An annotation file as JSON has it, where entries have COCO's types and name each other rightly."""

    path: Path
    categories: list[dict[str, Any]]
    images: dict[int, dict[str, Any]]  # by id, in the file's order
    annotations: dict[int, list[dict[str, Any]]]  # by image id, for every image

    def taken(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Each image's entry and its annotations, which are then let go: COCO's are gigabytes as Python objects."""
        for image_id, entry in self.images.items():
            yield entry, self.annotations.pop(image_id)


def load_coco(config: CocoConfig, split: str) -> CocoDataset:
    """Reads `split` of the directory.

    Raises `UserError` for a missing directory or image, an annotation file that is missing or not JSON, entries that
    lack keys or have values of other types (ids are whole numbers), and annotations that name an unknown image or
    category. Left out and counted: boxes of no area, polygons with fewer than three points, an odd number of
    coordinates or what is no number, RLEs that are broken, empty or not of their image's size. Images without
    annotations are kept (training drops them, see `DataConfig.keep_empty`) and counted. Instances of unusable keypoints
    are kept without them, and counted.
    """
    root = check_root(config.root)
    file = read_annotations(root / "annotations" / config.annotation_file.replace("{split}", split))
    return _dataset(file, image_directory(root, split), config.boxes_only)


def coco_dataset(
    content: Mapping[str, Any], name: str | Path, images: str | Path, *, boxes_only: bool = False
) -> CocoDataset:
    """The dataset that the content of an annotation file describes: for sources that make it from other files.

    `content` has COCO's "images", "annotations" and "categories"; `name` is what messages call it, `images` the folder
    of its "file_name"s. With `boxes_only` there need be no segmentations, and models with masks are refused. Errors and
    counts are those of `load_coco`.
    """
    return _dataset(_checked(Path(name), content, check_image), Path(images), boxes_only)


def _dataset(file: AnnotationFile, directory: Path, boxes_only: bool) -> CocoDataset:
    check_present(file.path, (directory / entry["file_name"] for entry in file.images.values()))
    reader = AnnotationReader(file.path, file.categories, boxes_only)
    records = (reader.record(entry, directory / entry["file_name"], found) for entry, found in file.taken())
    return reader.dataset(pack(records))


def check_root(root: str | Path) -> Path:
    """The directory of a source; `UserError` where it does not exist."""
    if not is_folder(root):
        raise UserError(f"Data directory {root} does not exist; set data.source.root to a COCO-style directory.")
    return Path(root)


def read_annotations(path: Path, check_image: Callable[[Any], int] = check_image) -> AnnotationFile:
    """The annotation file `path`; `UserError` where it cannot be used.

    `check_image` returns the id of an entry of an image, or raises ValueError as the readers of `entries` do.
    """
    return _checked(path, _read_content(path), check_image)


def _checked(path: Path, content: Any, check_image: Callable[[Any], int]) -> AnnotationFile:
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
            raise UserError(f"Annotation file {path} has no list '{key}'; export it in COCO's instances format.")
    images: dict[int, dict[str, Any]] = {}
    annotations: dict[int, list[dict[str, Any]]] = {}
    categories: dict[int, str] = {}

    def category(entry: Any) -> None:
        id_, name = check_category(entry)
        if id_ in categories:
            raise ValueError(f"has the id of '{categories[id_]}': it occurs twice; make the ids unique")
        categories[id_] = name

    def image(entry: Any) -> None:
        id_ = check_image(entry)
        if id_ in images:
            raise ValueError("has the id of another image: it occurs twice; make the ids unique")
        images[id_], annotations[id_] = entry, []

    def annotation(entry: Any) -> None:
        annotations[check_annotation(entry, images, categories)].append(entry)

    _check_all(path, content, "categories", "Category", category)
    _check_all(path, content, "images", "Image", image)
    if not images:
        raise UserError(f"Annotation file {path} lists no images; name another split or export it again.")
    _check_all(path, content, "annotations", "Annotation", annotation)
    return AnnotationFile(path, content["categories"], images, annotations)


def image_directory(root: Path, split: str) -> Path:
    """The folder of the split's images; `UserError` where there is none."""
    for directory in (root / split, root / "images" / split):
        if is_folder(directory):
            return directory
    raise UserError(f"Image directory {root / split} does not exist; put the images of split '{split}' there.")


def check_present(annotation_file: Path, images: Iterable[Path]) -> None:
    """Raises `UserError` where image files are missing."""
    missing = [path for path in images if not is_file(path)]
    if missing:
        more = f" and {len(missing) - 1} more images do" if len(missing) > 1 else " does"
        raise UserError(f"Image {missing[0]}{more} not exist; restore it or remove it from {annotation_file}.")


def _read_content(path: Path) -> Any:
    if not is_file(path):
        raise UserError(f"Annotation file {path} does not exist; put the annotations there or name another split.")
    try:
        return read_json(path)
    except ValueError as error:
        raise UserError(f"Annotation file {path} cannot be read: {error}; export it again.") from None


def _check_all(path: Path, content: Mapping[str, Any], section: str, kind: str, check: Callable[[Any], None]) -> None:
    for index, entry in enumerate(content[section]):
        try:
            check(entry)
        except ValueError as error:
            raise refusal(kind, f"{section}[{index}]", entry, path, error) from None
