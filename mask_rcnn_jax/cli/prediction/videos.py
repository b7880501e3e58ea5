"""Videos and image sequences for `mask-rcnn predict`: a video with coloured tracks, and a table, of each."""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from mask_rcnn_jax.cli.prediction.outputs import draw_detections
from mask_rcnn_jax.cli.prediction.tables import open_table
from mask_rcnn_jax.data import read_image
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.errors import UserError, printable
from mask_rcnn_jax.inference.predictor import Streaming
from mask_rcnn_jax.inference.results.extra_values import table_cells, table_columns
from mask_rcnn_jax.inference.tracking import Tracker
from mask_rcnn_jax.media.inputs import InputImage
from mask_rcnn_jax.media.video import VideoReader, VideoWriter

Frame = UInt8[np.ndarray, "H W 3"]
_COLUMNS = ("frame", "track", "class", "score", "x1", "y1", "x2", "y2")


@runtime_checkable
class Clip(Protocol):
    """A source of frames. After the last one, `problem` says what is missing."""

    rate: Fraction
    problem: str | None

    @property
    def stated_frames(self) -> int | None: ...
    def frames(self) -> Iterator[Frame]: ...


@dataclass
class ImageSequence:
    """Images that are the frames of a video, in the order of the numbers in their names.

    Those that cannot be read, or are of another size than the first, are left out.
    """

    images: Sequence[InputImage]
    rate: Fraction
    max_pixels: int
    problem: str | None = None
    _left_out: list[str] = field(default_factory=list)

    @property
    def stated_frames(self) -> int:
        return len(self.images)

    def frames(self) -> Iterator[Frame]:
        shape = None
        for image in sorted(self.images, key=lambda image: _by_number(image.path)):
            try:
                frame = read_image(image.path, self.max_pixels)
                shape = shape or frame.shape
                if frame.shape != shape:
                    raise UserError(f"Image {image.path} has another size than the first frame; make all the same.")
                yield frame
            except UserError as error:
                self._left_out.append(str(error))
        self.problem = "\n  ".join(self._left_out) or None


def predict_videos(
    predictor: Streaming,
    videos: Sequence[InputImage],
    max_pixels: int,
    outputs: OutputFolder,
    failures: list[str],
) -> tuple[int, int]:
    """Writes each video, and notes in `failures` what fails; returns the numbers of frames and of instances."""

    def of_file(video: InputImage) -> tuple[int, int]:
        with VideoReader(video.path, max_pixels) as reader:
            return predict_clip(predictor, reader, video.name, outputs, failures)

    return _sums(of_file, videos, failures)


def predict_sequences(
    predictor: Streaming,
    sequences: Sequence[tuple[str, Sequence[InputImage]]],
    rate: Fraction,
    max_pixels: int,
    outputs: OutputFolder,
    failures: list[str],
) -> tuple[int, int]:
    """Writes a video of each sequence, (name, images); otherwise as `predict_videos`."""

    def of_images(sequence: tuple[str, Sequence[InputImage]]) -> tuple[int, int]:
        clip = ImageSequence(sequence[1], rate, max_pixels)
        return predict_clip(predictor, clip, sequence[0], outputs, failures)

    return _sums(of_images, sequences, failures)


def video_files(out: Path, name: str) -> tuple[Path, Path]:
    """The video and the table that `predict_clip` writes into the folder `out`."""
    return out / "videos" / f"{name}.mp4", out / "videos" / f"{name}.csv"


def predict_clip(
    predictor: Streaming, clip: Clip, name: str, outputs: OutputFolder, failures: list[str]
) -> tuple[int, int]:
    """Writes videos/NAME.mp4, with what was found drawn in the colour of its track, and NAME.csv beside it.

    Raises UserError where there is no frame.
    """
    video, table = video_files(outputs.root, name)
    tracker, waiting, frames, instances = Tracker(), deque[Frame](), 0, 0

    def shown() -> Iterator[Frame]:
        for frame in clip.frames():
            waiting.append(frame)
            yield frame

    with (
        tqdm(total=clip.stated_frames, unit="frame", desc=printable(name), disable=None) as bar,
        VideoWriter(video, clip.rate, outputs.replacing) as writer,
        outputs.replacing(table) as part,
        open_table(part) as append,
    ):
        for found in predictor.stream(shown()):
            if not frames:
                append([*_COLUMNS, *table_columns(found.extras, _COLUMNS)])
            tracks = tracker.update(found)
            writer.write(draw_detections(waiting.popleft(), found, tracks))
            for i, (track, label) in enumerate(zip(tracks, found.names, strict=True)):
                box = (round(float(x), 2) for x in found.boxes[i])
                append([frames, track, label, round(float(found.scores[i]), 4), *box, *table_cells(found.extras, i)])
            frames, instances = frames + 1, instances + len(found)
            bar.update()
        if not frames:
            raise UserError(clip.problem or f"{name} has no frame; give another video")
    if clip.problem:
        failures.append(clip.problem)
    return frames, instances


def _sums(count: Callable[[Any], tuple[int, int]], clips: Sequence[Any], failures: list[str]) -> tuple[int, int]:
    frames = instances = 0
    for clip in clips:
        try:
            of_clip = count(clip)
        except UserError as error:
            failures.append(str(error))
        else:
            frames, instances = frames + of_clip[0], instances + of_clip[1]
    return frames, instances


def _by_number(path: Path) -> list[tuple[int, str]]:
    """A key by which frame_10 follows frame_9."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
