"""Images are opened through one door; their headers give the size of what is decoded, whatever says how to turn it."""

import ast
import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

import mask_rcnn_jax
from mask_rcnn_jax.data.augment.transforms import open_image
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.inference.images import open_picture
from mask_rcnn_jax.media import image_files
from mask_rcnn_jax.media.image_files import displayed_size, opened_image

PACKAGE = Path(mask_rcnn_jax.__file__).parent
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)  # as stored

# What shows an image of each orientation upright (TIFF 6.0, tag 274).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def saved(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before: bytes = b"", after: bytes = b"", sized: int = 1 << 16) -> bytes:
    """A PNG with chunks before and after its pixels, which lie in chunks of `sized` bytes."""
    content = saved("PNG", compress_level=1)
    start, end = content.index(b"IDAT") - 4, content.rindex(b"IEND") - 4
    data, at = b"", start
    while at < end:
        length = int.from_bytes(content[at : at + 4], "big")
        data, at = data + content[at + 8 : at + 8 + length], at + length + 12
    pixels = b"".join(chunk(b"IDAT", data[i : i + sized]) for i in range(0, len(data), sized))
    return content[:start] + before + pixels + after + content[end:]


def text(key: str, value: str) -> bytes:
    return chunk(b"iTXt", key.encode() + b"\0\0\0\0\0" + value.encode())


def xmp_chunk(orientation: int) -> bytes:
    return text("XML:com.adobe.xmp", XMP.format(orientation))


def exif_chunk(orientation: int) -> bytes:
    return chunk(b"eXIf", exif(orientation).tobytes()[6:])


def raw_profile(orientation: int) -> bytes:
    """EXIF as ImageMagick writes it."""
    data = exif(orientation).tobytes()
    return chunk(b"tEXt", f"Raw profile type exif\0\nexif\n{len(data):8}\n{data.hex()}\n".encode())


def animated(o: int) -> bytes:
    frames = [Image.fromarray(PIXELS[::-1])]
    return saved("PNG", save_all=True, append_images=frames, exif=exif(o))


CONTAINERS = {
    "jpeg": lambda o: saved("JPEG", exif=exif(o), quality=100, subsampling=0),
    "jpeg, XMP": lambda o: saved("JPEG", xmp=XMP.format(o).encode(), quality=100, subsampling=0),
    "webp": lambda o: saved("WEBP", exif=exif(o), lossless=True),
    "webp, XMP": lambda o: saved("WEBP", xmp=XMP.format(o).encode(), lossless=True),
    "jpeg of several pictures": lambda o: saved(
        "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], exif=exif(o), quality=100, subsampling=0
    ),
    "tiff": lambda o: saved("TIFF", exif=exif(o)),
    "tiff, compressed": lambda o: saved("TIFF", exif=exif(o), compression="tiff_lzw"),
    "tiff, XMP": lambda o: saved("TIFF", tiffinfo={700: XMP.format(o).encode()}),
    "tiff, both": lambda o: saved("TIFF", tiffinfo={0x0112: o, 700: XMP.format(6).encode()}),
    "png": lambda o: saved("PNG", exif=exif(o)),
    "png, animated": animated,
    "png, XMP": lambda o: png(before=xmp_chunk(o)),
    "png, text": lambda o: png(before=raw_profile(o)),
    "png, EXIF after the pixels": lambda o: png(after=exif_chunk(o)),
    "png, EXIF after many chunks": lambda o: png(after=exif_chunk(o), sized=50),
    "png, XMP after the pixels": lambda o: png(after=xmp_chunk(o)),
    "png, text after the pixels": lambda o: png(after=raw_profile(o)),
    "png, two, of which the last holds": lambda o: png(before=exif_chunk(6), after=exif_chunk(o)),
    "png, far from its end": lambda o: png(after=exif_chunk(o) + text("note", "x" * (1 << 17))),
    "png, a chunk's name in its pixels": lambda o: png(after=exif_chunk(o) + text("note", "IDAT" * 9), sized=300),
}

if features.check("avif"):
    CONTAINERS["avif"] = lambda o: saved("AVIF", exif=exif(o), quality=100, subsampling="4:4:4")


@pytest.mark.parametrize("container", CONTAINERS)
def test_orientation_is_applied_once_and_known_from_the_header(container, tmp_path):
    for orientation, turn in UPRIGHT.items():
        content = CONTAINERS[container](orientation)
        expected = turn(PIXELS)
        with opened_image(content) as image:
            assert displayed_size(image) == expected.shape[:2], orientation
            before_decoding = image.size
            displayed_size(image)
            assert image.size == before_decoding
        path = tmp_path / "image"
        path.write_bytes(content)
        decoded = np.asarray(open_image(path))
        tolerance = 60 if "jpeg" in container or "avif" in container else 0  # of noise
        np.testing.assert_allclose(decoded.astype(int), expected.astype(int), atol=tolerance)
        with Image.open(path) as image:
            for _ in range(2):  # decoded by the first, which leaves the caller's picture usable
                np.testing.assert_array_equal(np.asarray(open_picture(image)), decoded)
        np.testing.assert_array_equal(np.asarray(open_picture(open_image(path))), decoded)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000"])
def test_the_formats_that_are_read(kind):
    with opened_image(saved(kind)) as image:
        assert displayed_size(image) == PIXELS.shape[:2]


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "DDS", "PCX"])
def test_no_other_format_is_tried(kind, tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, kind)
    with pytest.raises(UserError, match=r"a\.jpg cannot be read"):
        open_image(path)


def test_there_is_one_door():
    found = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("Image.open", "PIL.Image.open")
    ]
    assert found == ["media/image_files.py"], "open images by `opened_image`, which limits formats and memory"


def test_importing_the_package_changes_nothing_of_other_libraries():
    """No module sets another's attribute, nor calls for its effect on the process, while it is imported."""
    assert Image.MAX_IMAGE_PIXELS == 1024**3 // 4 // 3
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {
            (alias.asname or alias.name).partition(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        for node in at_import(tree.body):
            targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [getattr(node, "target", None)]
            changed = {root(target) for target in targets if isinstance(target, ast.Attribute | ast.Subscript)}
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                changed.add(root(node.value.func))
            # An error handler is an addition, under a name of ours.
            if changed & imported and "codecs.register_error" not in ast.unparse(node):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert not found


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            continue
        yield node
        for part in ("body", "orelse", "handlers", "finalbody"):
            yield from at_import(getattr(node, part, []))


def root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def test_what_exceeds_pillows_limit_and_not_ours_is_read(monkeypatch):
    """Pillow's own limit belongs to the process: it is what it was, and bombs are still refused before decoding."""
    for limit in (PIXELS.shape[0] * PIXELS.shape[1] - 1, 100):  # Pillow warns up to twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for kind in ("PNG", "TIFF", "WEBP", "GIF"):
            content = saved(kind)
            assert open_image("a", opener=lambda content=content: io.BytesIO(content)).size == (40, 24)
            with pytest.raises(UserError, match=r"more than data\.max_pixels 900"):
                open_image("a", 900, opener=lambda content=content: io.BytesIO(content))
            assert limit == Image.MAX_IMAGE_PIXELS


def test_threads_that_read_large_images_do_not_disturb_each_other(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    content = saved("TIFF")
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: open_image("a", opener=lambda: io.BytesIO(content)), range(40)))
    assert all(image.size == (40, 24) for image in images)
    assert Image.MAX_IMAGE_PIXELS == 100
    with image_files._Limit.lifted():  # by one thread, while another asks
        assert image_files._Limit.is_below(101)
        assert not image_files._Limit.is_below(100)


def test_a_chunk_longer_than_its_file_takes_no_memory(tmp_path):
    path = tmp_path / "a.png"
    content = saved("PNG")
    end = content.rindex(b"IEND") - 4
    path.write_bytes(content[:end] + struct.pack(">I4s", 0x7FFFFFFF, b"IDAT") + b"short")
    asked = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size)
            return super().read(size)

    with contextlib.suppress(UserError):  # Pillow may or may not do without the last chunk
        open_image(path, opener=lambda: Watched(path.read_bytes()))
    assert max(size or 0 for size in asked) <= 1 << 17


def test_files_are_closed_and_pipes_are_read(tmp_path):
    held = io.BytesIO(saved("PNG"))
    with opened_image(held):
        pass
    assert held.closed

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    pipe = Pipe(saved("PNG"))
    with opened_image(pipe) as image:
        assert image.size == (40, 24)
    assert pipe.closed


def test_a_name_stands_for_a_regular_file(tmp_path):
    """A pipe of that name would be waited for, and some devices never end."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    for name in ("pipe.png", "link.png", "/dev/zero", "."):
        with pytest.raises(UserError, match="cannot be read"):
            open_image(tmp_path / name)
