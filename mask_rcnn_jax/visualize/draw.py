"""Draws instances on an image: tinted masks with contours, boxes, keypoints, and labels where there is room.

Shape letters: `H W` sides of the image, `n` instances, `J` keypoints of an instance, `h w` sides of a mask's window,
`s` magnification.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from mask_rcnn_jax.data.records.masks import Segmentation, to_rle
from mask_rcnn_jax.rle import cut_out

Color = tuple[int, int, int]
Mask = Bool[np.ndarray, "H W"] | Segmentation
Rectangle = tuple[float, float, float, float]

_READABLE_SIDE = 480  # pixels; smaller images are magnified by a whole number until a side has them
_SIDE_AT_ONCE = 2400  # pixels; of larger images parts are looked at, so that lines and letters grow no further
_TINT = 0.4  # opacity of masks
_RIM = (20, 20, 20)
_LABELLED_INSTANCES = 60  # with more, labels would hide what they name
DRAWN_KEYPOINT = 0.05  # score of a keypoint that is drawn
_GOLDEN_RATIO = 0.618034  # multiples of it are spread evenly over the circle of hues


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances that are drawn on an image."""

    boxes: Float[np.ndarray, "n 4"]  # (x1, y1, x2, y2), pixels of the image
    classes: Int[np.ndarray, " n"]
    masks: Sequence[Mask] | None  # bitmaps, COCO's RLEs, or lists of polygons
    scores: Float[np.ndarray, " n"] | None
    class_names: Sequence[str]
    crowds: Bool[np.ndarray, " n"] | None = None
    # (x, y, visibility): dots where the visibility is 2, rings where it is 1 (hidden), nothing where it is 0
    keypoints: Float[np.ndarray, "n J 3"] | None = None
    skeleton: Sequence[tuple[int, int]] = ()  # the pairs of keypoints that are joined
    tracks: Int[np.ndarray, " n"] | None = None  # numbers of instances of a video: their colours, and in their labels


def draw_instances(image: UInt8[np.ndarray, "H W 3"], instances: Instances) -> UInt8[np.ndarray, "canvas_H canvas_W 3"]:
    """Draw instances on the image, magnified by a whole number if it is small.

    A class has one hue, its instances shades of it; with a single class, each instance has a hue of its own. Labels
    give the class where there are several, the score, and whether it is a crowd. One that would cover another is left
    out, as are all on images with very many instances.
    """
    boxes, masks, keypoints, tracks = instances.boxes, instances.masks, instances.keypoints, instances.tracks
    height, width = image.shape[:2]
    scale = max(1, -(-_READABLE_SIDE // max(height, width)))
    canvas = image.repeat(scale, axis=0).repeat(scale, axis=1)
    colors = [_color(int(label), i, len(instances.class_names)) for i, label in enumerate(instances.classes)]
    if tracks is not None:
        colors = [_color(0, int(track), 1) for track in tracks]
    thickness = max(1, round(min(max(canvas.shape[:2]), _SIDE_AT_ONCE) / 300))
    # Large ones first, so that they hide no small ones.
    order = np.argsort(-_areas(boxes), kind="stable").tolist()
    if masks is not None:
        for i in order:
            mask, left, top = _window(masks[i], height, width)
            magnified = mask.repeat(scale, axis=0).repeat(scale, axis=1)
            _draw_mask(canvas[top * scale :, left * scale :], magnified, colors[i], thickness)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for i in order:
        x1, y1, x2, y2 = (float(value) * scale for value in boxes[i])
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colors[i], width=thickness)
    if keypoints is not None:
        for i in order:
            points = keypoints[i] * np.array([scale, scale, 1], np.float32)
            _draw_keypoints(pen, points, instances.skeleton, colors[i], thickness)
    if len(boxes) <= _LABELLED_INSTANCES:
        labels = [_label(i, instances) for i in range(len(boxes))]
        if tracks is not None:
            labels = [f"#{track} {label}" for track, label in zip(tracks, labels, strict=True)]
        _draw_labels(pen, picture.size, boxes * scale, labels, colors)
    return np.asarray(picture)


def side_by_side(
    pictures: Sequence[UInt8[np.ndarray, "H W 3"]], captions: Sequence[str]
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Pictures of one size in a row, each under its caption."""
    height, width = pictures[0].shape[:2]
    font_size = _font_size(height, width)
    font = ImageFont.load_default(font_size)
    bar, gap = int(font_size * 1.7), max(4, width // 100)
    sheet = Image.new("RGB", (width * len(pictures) + gap * (len(pictures) - 1), height + bar), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = i * (width + gap)
        pen.text((left + 4, bar / 2), caption, fill="black", font=font, anchor="lm")
        sheet.paste(Image.fromarray(picture), (left, bar))
    return np.asarray(sheet)


def _color(label: int, instance: int, num_classes: int) -> Color:
    hue = (instance if num_classes == 1 else label) * _GOLDEN_RATIO % 1
    saturation, value = (0.95, 0.65, 0.8)[instance % 3], (1.0, 0.95, 0.8)[instance % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _window(mask: Mask, height: int, width: int) -> tuple[Bool[np.ndarray, "h w"], int, int]:
    """The part of the mask that holds its pixels, and that part's left and top."""
    if isinstance(mask, np.ndarray):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not rows.size:
            return mask[:0, :0], 0, 0
        return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], int(columns[0]), int(rows[0])
    bitmap, (x1, y1, *_) = cut_out(to_rle(mask, height, width))
    return bitmap, x1, y1


def _draw_mask(
    canvas: UInt8[np.ndarray, "canvas_H canvas_W 3"], inside: Bool[np.ndarray, "h w"], color: Color, thickness: int
) -> None:
    """Tint the pixels at the corner of a canvas, and their contour."""
    height, width = inside.shape
    window = canvas[:height, :width]
    core = np.pad(inside, 1)
    for _ in range(thickness):
        core[1:-1, 1:-1] &= core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
    contour = inside & ~core[1:-1, 1:-1]
    for channel, ink in enumerate(color):
        tinted = (np.arange(256) * (1 - _TINT) + ink * _TINT).astype(np.uint8)
        window[..., channel][inside] = tinted[window[..., channel][inside]]
    window[contour] = color


def _draw_keypoints(
    pen: ImageDraw.ImageDraw,
    keypoints: Float[np.ndarray, "J 3"],
    skeleton: Sequence[tuple[int, int]],
    color: Color,
    thickness: int,
) -> None:
    # Pillow takes coordinates at pixel centres.
    points = [(x - 0.5, y - 0.5, visibility) for x, y, visibility in keypoints.tolist()]
    # The dark rim keeps lines and dots apart from a mask of the same colour.
    for width, ink in ((thickness + 2, _RIM), (thickness, color)):
        for first, second in skeleton:
            if points[first][2] > 0 and points[second][2] > 0:
                pen.line((*points[first][:2], *points[second][:2]), fill=ink, width=width)
    for x, y, visibility in points:
        if visibility > 0:
            fill, outline = (color, _RIM) if visibility > 1 else (_RIM, color)
            pen.circle((x, y), thickness + 1, fill=fill, outline=outline)


def _label(i: int, instances: Instances) -> str:
    names, crowds, scores = instances.class_names, instances.crowds, instances.scores
    words = [names[int(instances.classes[i])]] if len(names) > 1 else []
    if crowds is not None and crowds[i]:
        words.append("(crowd)")
    if scores is not None:
        words.append(f"{scores[i]:.2f}")
    return " ".join(words)


def _font_size(height: int, width: int) -> int:
    return max(11, round(min(max(height, width), _SIDE_AT_ONCE) / 55))


def _draw_labels(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    boxes: Float[np.ndarray, "n 4"],
    labels: Sequence[str],
    colors: Sequence[Color],
) -> None:
    """Writes labels at their boxes, first come first served, so the best scores keep theirs."""
    font = ImageFont.load_default(_font_size(*size))
    taken: list[Rectangle] = []
    for box, label, color in zip(boxes.tolist(), labels, colors, strict=True):
        if not label:
            continue
        x1, y1, x2, y2 = pen.textbbox((0, 0), label, font=font)
        width, height = x2 - x1 + 6, y2 - y1 + 4
        left = min(max(box[0], 0), max(size[0] - width, 0))
        # Above the box, or below it; inside where that leaves something to see.
        inside = [box[1]] if box[3] - box[1] > 3 * height else []
        for top in (box[1] - height, *inside, box[3]):
            place = (left, top, left + width, top + height)
            if top >= 0 and place[3] <= size[1] and not any(_overlap(place, other) for other in taken):
                pen.rectangle(place, fill=color)
                dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 140
                pen.text((left + 3 - x1, top + 2 - y1), label, fill="white" if dark else "black", font=font)
                taken.append(place)
                break


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
