"""Detections of overlapping tiles as those of the whole image, each instance once.

A detection is cut where its box reaches a border of its tile that is not one of the image. What the tiles say of an
instance is settled in three steps:

1. Whole detections of one class in several tiles that are alike are one instance. The best stays; its score becomes
   the mean over the tiles that show all of it, 0 where it was not found, or what is found by mistake would be the
   better off the more often it is looked for.
2. A cut detection of which another tile sees all, and which is covered there by half, is that tile's. Its class does
   not matter: the other tile saw more. So an instance that fits the overlap is never judged by a part of it.
3. Cut detections that are left are larger than the overlap. Two of one class which are alike where both tiles look are
   joined, and so on across any number of tiles.

Alike are masks of an IoU of `_SAME`, and boxes of `_SAME_BOX`: masks tell instances apart in a crowd, and boxes find
thin ones again, whose masks differ by a pixel. Detections of one tile are never compared: the detector has done so.
Two masks at a time are decoded, in the window that their tiles share.

Shape letters: `n` detections of all tiles, `t` tiles, `P` pairs of detections.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mask_rcnn_jax.extras import require
from mask_rcnn_jax.inference.results.detections import Detections
from mask_rcnn_jax.rle import RLE, area_of, as_bytes, as_text, cut_out, decode_window, encode_window, union_of

_SAME = 0.5
_SAME_BOX = 0.7
_COVERED = 0.5  # least share of a cut detection that a better view of it covers
# How far from a border a box may end that would reach it: detectors are inexact. Of its longer side, and in pixels.
_INEXACT, _INEXACT_PIXELS = 0.05, 2.0


def stitch(windows: Int[np.ndarray, "t 4"], found: Sequence[Detections], size: tuple[int, int]) -> Detections:
    """The instances of an image of `size` (height, width), best score first, from those `found` in its tiles.

    `windows` are the tiles' (x1, y1, x2, y2), whole pixels, in any arrangement; `found` is in pixels of the tile. A
    joined instance has the best score of its parts, the extras of the part that has it, the hull of their boxes, the
    union of their masks, and each keypoint from the part that is surest of it. Maps of several tiles are left out:
    their cells need not meet.
    """
    parts = _Parts.of(windows, found, size)
    pairs = parts.meeting_pairs()
    owner = _owners(parts, pairs)
    kept = owner == np.arange(len(owner))
    parts = replace(parts, scores=_mean_scores(parts, owner))
    kept = _without_better_seen(parts, pairs, kept)
    labels = _joined(parts, pairs, kept)
    groups = [np.flatnonzero(kept & (labels == label)) for label in np.unique(labels[kept])]
    groups.sort(key=lambda members: -parts.scores[members].max())
    return _assembled(parts, groups, found[0], size)


@dataclass(frozen=True, eq=False)
class _Parts:
    """Detections of all tiles in pixels of the image; masks stay in pixels of their tiles."""

    windows: Int[np.ndarray, "t 4"]
    tile: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]
    areas: Float[np.ndarray, " n"]  # pixels of the mask, or the box
    cut: Bool[np.ndarray, " n"]
    rles: tuple[RLE, ...] | None  # as pycocotools has them: counts are bytes
    keypoints: Float[np.ndarray, "n J 3"] | None
    extras: Mapping[str, Shaped[np.ndarray, "n ..."]]
    size: tuple[int, int]

    @classmethod
    def of(cls, windows: Int[np.ndarray, "t 4"], found: Sequence[Detections], size: tuple[int, int]) -> "_Parts":
        tile = np.repeat(np.arange(len(found)), [len(part) for part in found])
        corner = windows[tile, :2].astype(np.float32)
        boxes = np.concatenate([part.boxes for part in found]) + np.tile(corner, 2)
        rles = keypoints = None
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        if all(part.rles is not None for part in found):
            rles = tuple(as_bytes(rle) for part in found for rle in part.rles or ())
            # One by one: pycocotools 2.0.11 fails on lists of more than 255.
            areas = np.array([area_of(rle) for rle in rles], np.float32)
        if all(part.keypoints is not None for part in found):
            keypoints = np.concatenate([part.keypoints for part in found if part.keypoints is not None])
            keypoints = keypoints + np.pad(corner, ((0, 0), (0, 1)))[:, None]
        return cls(
            windows=windows,
            tile=tile,
            boxes=boxes,
            scores=np.concatenate([part.scores for part in found]),
            classes=np.concatenate([part.classes for part in found]),
            areas=areas,
            cut=_cut(boxes, windows[tile], size),
            rles=rles,
            keypoints=keypoints,
            extras={
                name: np.concatenate([part.extras[name] for part in found])
                for name in found[0].extras
                if all(name in part.extras for part in found)
            },
            size=size,
        )

    def meeting_pairs(self) -> Int[np.ndarray, "P 2"]:
        """Detections of different tiles whose boxes meet, each pair once, those of one tile together."""
        first = np.searchsorted(self.tile, np.arange(len(self.windows) + 1))
        pairs = [np.zeros((0, 2), int)]
        for a in range(len(self.windows)):
            for b in np.flatnonzero(_meet(self.windows[a], self.windows[a + 1 :])) + a + 1:
                rows = slice(first[a], first[a + 1])
                meet = _meet(self.boxes[rows, None], self.boxes[None, first[b] : first[b + 1]])
                pairs.append(np.argwhere(meet) + np.array([first[a], first[b]]))
        return np.concatenate(pairs)

    def shown_whole(self, i: int) -> Bool[np.ndarray, " t"]:
        """Return which tiles show all of detection `i`."""
        return ~_cut(self.boxes[i][None], self.windows, self.size)

    def common(self, i: int, j: int) -> tuple[float, float, float]:
        """Pixels of `i`, of `j` and of both where their tiles overlap."""
        shared = _intersection(self.windows[self.tile[i]], self.windows[self.tile[j]])
        if self.rles is None:
            a, b = _intersection(self.boxes[i], shared), _intersection(self.boxes[j], shared)
            return _area(a), _area(b), _area(_intersection(a, b))
        low, high = np.minimum(self.boxes[i], self.boxes[j])[:2], np.maximum(self.boxes[i], self.boxes[j])[2:]
        # A pasted mask may reach a pixel beyond its box.
        window = _intersection(np.concatenate([np.floor(low) - 1, np.ceil(high) + 1]).astype(int), shared)
        if not _area(window):
            return 0.0, 0.0, 0.0
        a, b = (decode_window(self.rles[k], self._in_tile(window, k)) for k in (i, j))
        return float(a.sum()), float(b.sum()), float((a & b).sum())

    def rle_in_image(self, i: int) -> RLE:
        """The mask of detection `i` as an RLE of the image, counts in bytes."""
        assert self.rles is not None
        bitmap, (x, y, *_) = cut_out(self.rles[i])
        left, top = self.windows[self.tile[i], :2].tolist()
        return encode_window(bitmap.T, left + x, top + y, self.size)

    def _in_tile(self, window: Int[np.ndarray, "4"], i: int) -> tuple[int, int, int, int]:
        x1, y1, x2, y2 = (window - np.tile(self.windows[self.tile[i], :2], 2)).tolist()
        return x1, y1, x2, y2


def _cut(
    boxes: Float[np.ndarray, "#n 4"], windows: Int[np.ndarray, "#n 4"], size: tuple[int, int]
) -> Bool[np.ndarray, " #n"]:
    """Return which boxes reach, or all but reach, a border of their window inside the image, or lie beyond it."""
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True)
    near = _INEXACT_PIXELS + _INEXACT * longer
    low = (windows[:, :2] > 0) & (boxes[:, :2] - windows[:, :2] < near)
    high = (windows[:, 2:] < (size[1], size[0])) & (windows[:, 2:] - boxes[:, 2:] < near)
    return (low | high).any(axis=1)


def _owners(parts: _Parts, pairs: Int[np.ndarray, "P 2"]) -> Int[np.ndarray, " n"]:
    """Each detection's own number, or of whole ones that of a better one like it in another tile."""
    a, b = pairs.T
    possible = ~parts.cut[a] & ~parts.cut[b] & (parts.classes[a] == parts.classes[b])
    alike = _partners(np.array([pair for pair in pairs[possible].tolist() if _alike(parts, *pair)], int).reshape(-1, 2))
    owner = np.full(len(parts.tile), -1)
    for i in np.argsort(-parts.scores, kind="stable").tolist():
        owner[i] = next((j for j in alike[i] if owner[j] == j), i)
    return owner


def _mean_scores(parts: _Parts, owner: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The scores, and for owners the mean of the best in each tile that shows all of the instance."""
    scores = parts.scores.copy()
    members = defaultdict(list)
    for i, j in enumerate(owner.tolist()):
        members[j].append(i)
    for j in np.flatnonzero((owner == np.arange(len(owner))) & ~parts.cut).tolist():
        best: dict[int, float] = {}
        for i in members[j]:
            best[int(parts.tile[i])] = max(float(parts.scores[i]), best.get(int(parts.tile[i]), 0.0))
        views = best.keys() | set(np.flatnonzero(parts.shown_whole(j)).tolist())
        scores[j] = sum(best.values()) / len(views)
    return scores


def _alike(parts: _Parts, i: int, j: int) -> bool:
    if _iou(parts.boxes[i], parts.boxes[j]) >= _SAME_BOX:
        return True
    _, _, both = parts.common(i, j)
    return bool(both >= _SAME * (parts.areas[i] + parts.areas[j] - both))


def _without_better_seen(
    parts: _Parts, pairs: Int[np.ndarray, "P 2"], kept: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """`kept` without the cut ones that another tile shows whole and has covered, the largest views first."""
    others = _partners(pairs[kept[pairs].all(axis=1)])
    kept, settled = kept.copy(), ~parts.cut
    for i in np.argsort(-parts.areas, kind="stable").tolist():
        if parts.cut[i]:
            settled[i] = True
            shown = parts.shown_whole(i)
            better = (j for j in others[i] if kept[j] and settled[j] and shown[parts.tile[j]])
            kept[i] &= not any(_covers(parts, j, i) for j in better)
    return kept


def _covers(parts: _Parts, j: int, i: int) -> bool:
    """Return whether detection `j` holds most of `i`, or looks like it in the tile of `i`."""
    if _iou(_intersection(parts.boxes[j], parts.windows[parts.tile[i]]), parts.boxes[i]) >= _SAME_BOX:
        return True
    _, _, both = parts.common(i, j)
    return bool(both >= _COVERED * parts.areas[i])


def _joined(parts: _Parts, pairs: Int[np.ndarray, "P 2"], kept: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """A number for each detection, the same for those that are parts of one instance."""
    a, b = pairs.T
    possible = (kept & parts.cut)[pairs].all(axis=1) & (parts.classes[a] == parts.classes[b])
    links = [(i, j) for i, j in pairs[possible].tolist() if _agree(parts, i, j)]
    count = len(parts.tile)
    if not links:
        return np.arange(count)
    require("tiles", "an instance in several tiles")
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.array(links).T
    graph = coo_array((np.ones(len(links), bool), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _agree(parts: _Parts, i: int, j: int) -> bool:
    shared = _intersection(parts.windows[parts.tile[i]], parts.windows[parts.tile[j]])
    a, b, both = parts.common(i, j)
    # What passes through the overlap of two tiles has a pixel in each of its lines; less is chance, or a small part.
    enough = min(float((shared[2:] - shared[:2]).min()), _COVERED * float(min(parts.areas[i], parts.areas[j])))
    return bool(both >= max(_SAME * (a + b - both), enough))


def _assembled(
    parts: _Parts, groups: Sequence[Int[np.ndarray, " _"]], like: Detections, size: tuple[int, int]
) -> Detections:
    best = np.array([members[np.argmax(parts.scores[members])] for members in groups], int)
    hulls = [(*parts.boxes[m, :2].min(axis=0), *parts.boxes[m, 2:].max(axis=0)) for m in groups]
    rles = keypoints = None
    if parts.rles is not None:
        rles = tuple(as_text(union_of([parts.rle_in_image(i) for i in members.tolist()])) for members in groups)
    if parts.keypoints is not None:
        keypoints = np.zeros((len(groups), *parts.keypoints.shape[1:]), np.float32)
        for row, members in enumerate(groups):
            surest = parts.keypoints[members, :, 2].argmax(axis=0)
            keypoints[row] = parts.keypoints[members[surest], np.arange(len(surest))]
    return replace(
        like,
        height=size[0],
        width=size[1],
        boxes=np.array(hulls, np.float32).reshape(-1, 4),
        scores=parts.scores[best],
        classes=parts.classes[best],
        rles=rles,
        keypoints=keypoints,
        path=None,
        extras={name: values[best] for name, values in parts.extras.items()},
        maps=like.maps if len(parts.windows) == 1 else {},
        stuff=like.stuff if len(parts.windows) == 1 else None,
    )


def _partners(pairs: Int[np.ndarray, "P 2"]) -> dict[int, list[int]]:
    """Each detection's partners in pairs."""
    partners: dict[int, list[int]] = defaultdict(list)
    for i, j in pairs.tolist():
        partners[i].append(j)
        partners[j].append(i)
    return partners


def _meet(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.all(np.maximum(a[..., :2], b[..., :2]) < np.minimum(a[..., 2:], b[..., 2:]), axis=-1)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low = np.maximum(a[:2], b[:2])
    return np.concatenate([low, np.maximum(np.minimum(a[2:], b[2:]), low)])


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    both = _area(_intersection(a, b))
    return both / max(_area(a) + _area(b) - both, 1e-9)


def _area(box: np.ndarray) -> float:
    return float(np.prod(box[2:] - box[:2]))
