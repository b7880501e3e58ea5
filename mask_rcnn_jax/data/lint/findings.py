"""Defects that a dataset can have, and those that were found."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mask_rcnn_jax.data.lint.counts import SplitCounts

Severity = Literal["error", "warning"]

FORMAT = 1  # of the JSON; raised when a key changes its meaning or goes


@dataclass(frozen=True)
class Check:
    """A kind of problem: errors hurt training or make its evaluation wrong, warnings deserve a look."""

    severity: Severity
    what: str  # of many: a count precedes it


# In the order in which they are reported. The codes are part of the JSON and do not change.
CHECKS = {
    "annotation-file": Check("error", "annotation files that cannot be used"),
    "image-folder": Check("error", "missing folders of images"),
    "categories-differ": Check("error", "splits whose categories are not those of the first"),
    "category-entry": Check("error", "entries of categories that cannot be used"),
    "category-id-repeated": Check("error", "category ids that occur twice"),
    "image-entry": Check("error", "entries of images that cannot be used"),
    "image-id-repeated": Check("error", "image ids that occur twice"),
    "file-repeated": Check("error", "image files that are listed twice"),
    "image-missing": Check("error", "image files that do not exist"),
    "image-broken": Check("error", "image files that cannot be read"),
    "image-huge": Check("error", "images of more pixels than `data.max_pixels`"),
    "image-size": Check("error", "images of another size than annotated"),
    "image-turned": Check("error", "images that EXIF turns, annotated as if it did not"),
    "annotation-entry": Check("error", "entries of annotations that cannot be used"),
    "annotation-id-repeated": Check("error", "annotation ids that occur twice"),
    "unknown-image": Check("error", "annotations of unknown images"),
    "unknown-category": Check("error", "annotations of unknown categories"),
    "box-empty": Check("error", "boxes without area in their image"),
    "mask-missing": Check("error", "annotations without a mask"),
    "rle-size": Check("error", "RLEs that are not of their image's size"),
    "rle-broken": Check("error", "RLEs that cannot be decoded"),
    "polygon-broken": Check("error", "polygons of too few points or broken coordinates"),
    "polygon-outside": Check("error", "polygons outside their image"),
    "mask-empty": Check("error", "masks that cover no pixel"),
    "box-elsewhere": Check("error", "boxes that are not where their mask is (IoU below .5)"),
    "split-leak": Check("error", "images that another split holds too"),
    "category-name-repeated": Check("warning", "categories of the same name"),
    "category-unused": Check("warning", "categories without objects"),
    "box-beyond": Check("warning", "boxes that reach outside their image"),
    "polygon-beyond": Check("warning", "polygons that reach outside their image"),
    "box-loose": Check("warning", "boxes that do not fit their mask"),
    "mask-thin": Check("warning", "masks less than 2 pixels wide or high"),
    "crowd-polygon": Check("warning", "crowds given as polygons, where COCO has RLE"),
    "keypoints-broken": Check("warning", "keypoints that cannot be used"),
    "keypoint-flips": Check("warning", "keypoints that may be left or right, and stay in place in flips"),
    "annotation-copied": Check("warning", "annotations that repeat another one's mask"),
    "image-unlisted": Check("warning", "image files that no entry lists"),
    "image-copied": Check("warning", "images of the same pixels as another one"),
    "image-near-copy": Check("warning", "images that look like another one, resized or compressed"),
    "split-near-leak": Check("warning", "images that look like one of another split, resized or compressed"),
}

_ORDER = {code: place for place, code in enumerate(CHECKS)}


@dataclass(frozen=True)
class Finding:
    """One problem. Ids are as the file has them."""

    code: str  # a key of `CHECKS`
    message: str
    split: str
    file: str  # the image, or else the annotation file, below the dataset's folder
    image_id: Any = None
    annotation_id: Any = None
    category_id: Any = None

    @property
    def severity(self) -> Severity:
        return CHECKS[self.code].severity


@dataclass(frozen=True)
class Report:
    """Counts of every split that could be read, and findings in the order of `CHECKS`, splits and files."""

    dataset: str
    splits: dict[str, SplitCounts]
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The report in plain types."""
        return {
            "format": FORMAT,
            "dataset": self.dataset,
            "splits": {name: asdict(counts) for name, counts in self.splits.items()},
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [{"severity": finding.severity} | asdict(finding) for finding in self.findings],
        }


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """By kind; within a kind as they were found: split after split, image after image."""
    return tuple(sorted(findings, key=lambda finding: _ORDER[finding.code]))
