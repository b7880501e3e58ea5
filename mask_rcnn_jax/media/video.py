"""Frames of videos, read and written through PyAV (FFmpeg), which the extra `video` installs."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mask_rcnn_jax.disk.files import replacing
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.extras import require
from mask_rcnn_jax.media.image_files import MAX_PIXELS

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})

# FFmpeg looks at the content and not at the name: of all that it knows, playlists make it open other files, and URLs.
_CONTAINERS = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,asf"}

_DEFAULT_RATE = Fraction(25)
_FINEST = 2**16 - 1  # denominator of a rate: encoders count time in 32-bit ratios
_SPARE = 0.02  # share of its stated length that a whole video may lack: containers round
_CODECS = ("libx264", "mpeg4")  # the first that this FFmpeg can write


class VideoReader:
    """The frames of a video's first video stream, decoded one by one.

    Raises `UserError` where the file is missing, no video, or has frames of more than `max_pixels`. `rate` is in frames
    a second, averaged. After the last frame, `problem` says where the video breaks off before its end, also where its
    frames become too large; it is None for a whole one.
    """

    def __init__(self, path: str | Path, max_pixels: int = MAX_PIXELS):
        self.path = Path(path)
        limit = {"max_pixels": str(min(max_pixels, 2**31 - 1))}
        self._av = _library()
        try:
            # Absolute, since FFmpeg takes a name with a colon for a URL.
            self._container = self._av.open(
                os.path.abspath(path),
                options=limit,
                container_options=_CONTAINERS,
                **_any_title(self._av),
            )
        except FileNotFoundError:
            raise UserError(f"Video {path} does not exist.") from None
        except self._av.FFmpegError as error:
            raise UserError(f"Video {path} cannot be read ({error.strerror}); restore or replace the file.") from None
        if not self._container.streams.video:
            self._container.close()
            raise UserError(f"{path} holds no pictures; give a video.")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            self._container.close()
            raise UserError(f"Video {path} has frames in a format that this FFmpeg cannot decode; convert the file.")
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.options = limit
        width, height = self._stream.codec_context.width, self._stream.codec_context.height
        if width * height > max_pixels:
            self._container.close()
            raise UserError(
                f"Video {path} has frames of {width} x {height}, more than data.max_pixels {max_pixels} allows to"
                " decode; replace the file, or raise the limit if you trust it."
            )
        self.rate = Fraction(self._stream.average_rate or _DEFAULT_RATE)
        self.problem: str | None = None

    @property
    def stated_frames(self) -> int | None:
        """Read the number of frames from the file's header; None where it does not say."""
        if self._stream.frames:
            return self._stream.frames
        seconds = None
        if self._stream.duration and self._stream.time_base:
            seconds = self._stream.duration * self._stream.time_base
        elif self._container.duration:
            seconds = Fraction(self._container.duration, self._av.time_base)
        return None if seconds is None else math.floor(seconds * self.rate)

    def frames(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """RGB frames in order, upright, as far as they can be read."""
        count = 0
        try:
            for frame in self._container.decode(self._stream):
                yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                count += 1
        except self._av.FFmpegError as error:
            self.problem = self._breaks_off(count, f" ({error.strerror})")
            return
        if not count or count < (self.stated_frames or 0) * (1 - _SPARE) - 1:
            self.problem = self._breaks_off(count)

    def _breaks_off(self, count: int, why: str = "") -> str:
        of = f" of {self.stated_frames}" if self.stated_frames else ""
        return f"Video {self.path} breaks off after {count}{of} frames{why}; restore the file for the rest."

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class VideoWriter:
    """Writes RGB frames of one size as a video that browsers play; nothing is at `path` before it is whole.

    An odd last row or column is repeated, since the format wants even sides. Leaving the `with` block by an exception
    writes nothing. Raises `UserError` where the file cannot be written. `replace` says where it is written until then.
    """

    def __init__(
        self,
        path: str | Path,
        rate: Fraction,
        replace: Callable[[Path], AbstractContextManager[Path]] = replacing,
    ):
        self.path = Path(path)
        self._av, self._replace, self._stack = _library(), replace, ExitStack()
        self._rate = max(rate.limit_denominator(_FINEST), Fraction(1, _FINEST))
        self._container: Any = None
        self._stream: Any = None

    def write(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        """Appends a frame; all must have the size of the first."""
        height, width = frame.shape[:2]
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            if self._container is None:
                self._open(even.shape[0], even.shape[1])
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            assert self._container is not None
            self._container.mux(self._stream.encode(picture))
        except (OSError, self._av.FFmpegError) as error:
            raise self._unwritable(error) from None

    def _open(self, height: int, width: int) -> None:
        codec = next(name for name in _CODECS if name in self._av.codecs_available)
        part = self._stack.enter_context(self._replace(self.path))
        self._container = self._av.open(os.path.abspath(part), "w", format="mp4", options={"movflags": "faststart"})
        self._stream = self._container.add_stream(codec, rate=self._rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._stack:
                if self._container is not None:
                    if kind is None:
                        self._container.mux(self._stream.encode())
                    self._container.close()
                if error is not None:
                    raise error
        except (OSError, self._av.FFmpegError) as failure:
            if failure is error:
                raise
            raise self._unwritable(failure) from None

    def _unwritable(self, error: Any) -> UserError:
        frames = ""
        if self._stream is not None and not isinstance(error, OSError):  # FFmpeg does not say that a frame is too large
            frames = f" in frames of {self._stream.width} x {self._stream.height}"
        return UserError(f"Video {self.path} cannot be written{frames}: {error.strerror or error}")


def _any_title(av: Any) -> dict[str, str]:
    """Return what opens a video with a title of any encoding, which PyAV 19 does by itself."""
    return {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


def _library() -> ModuleType:
    require("video", "a video")
    import av

    return av
