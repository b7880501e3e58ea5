"""Names that the values of a head may have: in Python, in files and in exported models others stand beside them."""

from collections.abc import Iterable

from mask_rcnn_jax.errors import UserError

CELLS = "_cells"  # ends the name of the number of cells of a map, in exported models
TAKEN = frozenset(
    # Detections, and the inputs and outputs of exported models.
    {"boxes", "scores", "classes", "masks", "keypoints", "stuff", "valid", "images", "sizes"}
    # COCO's results and annotations.
    | {"id", "image_id", "category_id", "bbox", "score", "segmentation", "num_keypoints", "area", "iscrowd"}
    # Tables of images and of videos, GeoJSON, supervision.
    | {"image", "instance", "class", "class_id", "x1", "y1", "x2", "y2", "frame", "track"}
    | {"classification", "class_name"}
)


def is_free(name: object) -> bool:
    """Tell whether a head may call a value so: an identifier that nothing else has."""
    return isinstance(name, str) and name.isidentifier() and name not in TAKEN and not name.endswith(CELLS)


def check_value_names(names: Iterable[str]) -> None:
    """Check the names of all that the heads of one model give beside masks and keypoints.

    Raises UserError for the first that cannot be used, or is given twice.
    """
    seen: set[str] = set()
    for name in names:
        if not name.isidentifier():
            raise UserError(f"a head calls a value {name!r}; name it by letters, digits and underscores alone")
        if not is_free(name) or name in seen:
            raise UserError(f"a head calls a value '{name}', which is the name of another; give it one of its own")
        seen.add(name)
