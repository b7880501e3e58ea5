"""Finds the same image twice, within a split and in two splits.

Exact copies have the same pixels. Near copies, resized or compressed again, have grey thumbnails that correlate by .99:
thumbnails of COCO photos beside their smaller versions correlate by .9995 and more, those of different photos by less
than .92, and neighbouring frames of a microscope by .984.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from mask_rcnn_jax.data.lint.findings import Finding
from mask_rcnn_jax.data.lint.images import File

_ALIKE = 0.99  # correlation of thumbnails
_FLAT = 1.0  # grey levels of standard deviation: what is flatter has no features to compare
_ASPECT = 0.03  # share by which sides' ratios may differ: rounding of a resized image's sides
_BLOCK = 1024  # thumbnails that are compared at a time


def find_copies(files: Sequence[File]) -> list[Finding]:
    """Findings for images that repeat an earlier one: exact copies and near ones."""
    findings = []
    first: dict[bytes, File] = {}
    distinct = []
    for file in files:
        if not file.digest:
            continue
        original = first.setdefault(file.digest, file)
        if original is file:
            distinct.append(file)
            continue
        code = "image-copied" if original.split == file.split else "split-leak"
        findings.append(Finding(code, f"has the same pixels as {original.path}", file.split, file.path))
    return findings + _near_copies([file for file in distinct if _contrast(file) >= _FLAT])


def _near_copies(files: Sequence[File]) -> list[Finding]:
    """For each image the earlier one that it looks like most, if any."""
    if not files:
        return []
    features = np.stack([_features(file) for file in files])
    aspects = np.log([file.size[1] / file.size[0] for file in files])
    findings = []
    for start in range(0, len(files), _BLOCK):
        stop = min(start + _BLOCK, len(files))
        alike = features[start:stop] @ features[:stop].T
        alike[np.abs(aspects[start:stop, None] - aspects[:stop]) > _ASPECT] = -1
        alike[np.arange(stop) >= np.arange(start, stop)[:, None]] = -1
        for row in np.flatnonzero(alike.max(axis=1) >= _ALIKE).tolist():
            file, original = files[start + row], files[int(alike[row].argmax())]
            code = "image-near-copy" if original.split == file.split else "split-near-leak"
            shown = f"looks like {original.path} (correlation {alike[row].max():.3f})"
            findings.append(Finding(code, shown, file.split, file.path))
    return findings


def _contrast(file: File) -> float:
    return 0.0 if file.thumbnail is None else float(file.thumbnail.std())


def _features(file: File) -> Float32[np.ndarray, " t2"]:
    """The thumbnail with mean 0 and length 1: products are correlations."""
    assert file.thumbnail is not None
    centred = (file.thumbnail - file.thumbnail.mean()).ravel()
    return centred / np.linalg.norm(centred)
