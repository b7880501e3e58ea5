"""Frames that were written come back; what is no video, or half of one, is said."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.media.video import VideoReader, VideoWriter

av = pytest.importorskip("av", reason="needs PyAV, the extra `video`")


def gradients(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Smooth pictures that all differ, so that a lossy codec changes them little."""
    y, x = np.mgrid[:height, :width]
    channels = [(np.full((height, width), 20 + 7 * i), x * 200 // width, y * 200 // height) for i in range(count)]
    return [np.stack(frame, axis=-1).astype(np.uint8) for frame in channels]


def write(path: Path, frames: list[np.ndarray], rate: Fraction = Fraction(10)) -> Path:
    with VideoWriter(path, rate) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63)])
def test_frames_come_back_in_order_at_their_rate(tmp_path, height, width):
    frames = gradients(20, height, width)
    with VideoReader(write(tmp_path / "a.mp4", frames, Fraction(30000, 1001))) as reader:
        assert reader.rate == Fraction(30000, 1001)
        assert reader.stated_frames == 20
        read = list(reader.frames())
        assert reader.problem is None
    assert len(read) == 20
    for frame, expected in zip(read, frames, strict=True):
        assert frame.shape == (height + height % 2, width + width % 2, 3)
        # A frame is 7 levels from the next.
        assert np.abs(frame[:height, :width].astype(int) - expected).mean() < 3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_video_that_ends_in_the_middle(tmp_path, suffix):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(40)]
    path = write(tmp_path / f"a{suffix}", noise)
    with VideoReader(path) as reader:
        assert len(list(reader.frames())) == 40
        assert reader.problem is None
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with VideoReader(path) as reader:
        count = len(list(reader.frames()))
        assert 5 < count < 30
        assert reader.problem is not None
        assert f"{path} breaks off after {count}" in reader.problem


def test_what_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(UserError, match="does not exist"):
        VideoReader(path)
    path.write_bytes(b"no video" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        VideoReader(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        VideoReader(path)


def test_frames_of_too_many_pixels_are_not_decoded(tmp_path):
    path = write(tmp_path / "a.mp4", gradients(3))
    with VideoReader(path, 48 * 64) as reader:
        assert len(list(reader.frames())) == 3
    with pytest.raises(UserError, match=r"frames of 64 x 48, more than data\.max_pixels 3071"):
        VideoReader(path, 48 * 64 - 1)


def transport_stream(path: Path, frames: list[np.ndarray]) -> Path:
    """A video to which others can be appended."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_frames_that_become_too_large_are_not_decoded(tmp_path):
    small = transport_stream(tmp_path / "small.ts", gradients(20))
    large = transport_stream(tmp_path / "large.ts", gradients(9, 480, 640))
    path = tmp_path / "grows.mpg"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with VideoReader(path, 48 * 64) as reader:
        assert {frame.shape for frame in reader.frames()} == {(48, 64, 3)}
        assert reader.problem is not None
        assert "breaks off after" in reader.problem


def test_a_playlist_is_no_video(tmp_path):
    """FFmpeg would open what it names, wherever that is."""
    video = transport_stream(tmp_path / "a.ts", gradients(3))
    path = tmp_path / "list.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{video}\n#EXT-X-ENDLIST\n")
    with pytest.raises(UserError, match="cannot be read"):
        VideoReader(path)


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    def interrupted():
        with VideoWriter(tmp_path / "a.mp4", Fraction(10)) as writer:
            writer.write(gradients(1)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "missing" / "a.mp4", gradients(1))


@pytest.mark.parametrize("name", ["a:b.mp4", "file:a.mp4", "%03d.mp4"])
def test_a_name_is_no_url(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with VideoReader(write(Path(name), gradients(5))) as reader:
        assert len(list(reader.frames())) == 5
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_video_of_any_metadata_and_of_no_known_codec(tmp_path):
    path = tmp_path / "a.mp4"
    content = write(path, gradients(3)).read_bytes()
    encoder = content.index(b"Lavf")
    path.write_bytes(content[:encoder] + b"\xe9" + content[encoder + 1 :])
    with VideoReader(path) as reader:
        assert len(list(reader.frames())) == 3
    path.write_bytes(content.replace(b"avc1", b"none").replace(b"mp4v", b"none"))
    with pytest.raises(UserError, match=r"a\.mp4 has frames in a format that"):
        VideoReader(path)


@pytest.mark.parametrize("rate", [Fraction("23.97602397602397602"), Fraction("1e-12"), Fraction("999.9999999")])
def test_any_rate_is_written(tmp_path, rate):
    path = write(tmp_path / "a.mp4", gradients(2), rate)
    with VideoReader(path) as reader:
        assert len(list(reader.frames())) == 2


def test_frames_that_the_codec_does_not_take(tmp_path):
    with pytest.raises(UserError, match=r"a\.mp4 cannot be written in frames of 70000 x 2"):
        write(tmp_path / "a.mp4", [np.zeros((2, 70_000, 3), np.uint8)])
    assert not list(tmp_path.iterdir())
