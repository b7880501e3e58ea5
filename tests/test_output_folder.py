"""Folders of output: inputs and files of other origin stay, by any name and after any kill."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from mask_rcnn_jax.data import image_folder
from mask_rcnn_jax.disk.files import replacing
from mask_rcnn_jax.disk.output_folder import RECORD, OutputFolder, lies_in
from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.media.inputs import find_images


def write(outputs: OutputFolder, name: str, content: str) -> Path:
    with outputs.replacing(outputs.root / name) as part:
        part.write_text(content)
    return outputs.root / name


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_a_command_wrote_it_replaces(tmp_path) -> None:
    write(OutputFolder(tmp_path / "out"), "labels/a.png", "first")
    for content in ("second", "first", "second"):
        file = write(OutputFolder(tmp_path / "out"), "labels/a.png", content)
        assert file.read_text() == content
    assert files(tmp_path / "out") == [RECORD, "labels/a.png"]
    assert len((tmp_path / "out" / RECORD).read_text().split()) == 2 * 3  # two contents of three words


def test_what_others_wrote_or_changed_stays(tmp_path) -> None:
    file = write(OutputFolder(tmp_path), "a.png", "mine")
    for content in ("hers", "yours"):  # as long as what was written, and longer
        file.write_text(content)
        outputs = OutputFolder(tmp_path)
        with pytest.raises(UserError, match=r"a\.png is there already.*--overwrite"):
            outputs.check([file, tmp_path / "new.png"])
        with pytest.raises(UserError, match="there already"):
            write(outputs, "a.png", "other")
        assert file.read_text() == content
    write(OutputFolder(tmp_path, overwrite=True), "a.png", "other")
    OutputFolder(tmp_path).check([file])
    assert files(tmp_path) == [RECORD, "a.png"]


def test_only_what_a_command_wrote_is_removed(tmp_path) -> None:
    own, changed, named = (write(OutputFolder(tmp_path), f"{name}.png", "mine") for name in "abc")
    changed.write_text("hers")
    (tmp_path / "d.png").write_text("mine")
    OutputFolder(tmp_path, [named], overwrite=True).remove_own([*tmp_path.glob("*.png"), tmp_path / "none.png"])
    assert not own.exists()
    assert files(tmp_path) == [RECORD, "b.png", "c.png", "d.png"]


def test_what_has_come_meanwhile_stays(tmp_path) -> None:
    outputs = OutputFolder(tmp_path)
    outputs.check([tmp_path / "a.png"])
    (tmp_path / "a.png").write_text("precious")
    with pytest.raises(UserError, match="there already"):
        write(outputs, "a.png", "mine")
    assert files(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "precious"


@pytest.mark.parametrize("name", ["same", "link", "hard link", "dots"])
def test_inputs_are_never_replaced(tmp_path, name) -> None:
    source = tmp_path / "videos" / "a.mp4"
    source.parent.mkdir()
    source.write_text("precious")
    if name == "link":
        (tmp_path / "out").symlink_to(tmp_path)
    if name == "hard link":
        (tmp_path / "out" / "videos").mkdir(parents=True)
        os.link(source, tmp_path / "out" / "videos" / "a.mp4")
    root = {"same": tmp_path, "dots": tmp_path / "videos" / ".."}.get(name, tmp_path / "out")
    outputs = OutputFolder(root, [source], overwrite=True)
    with pytest.raises(UserError, match=r"would replace the input .*a\.mp4; choose another --out"):
        outputs.check([root / "videos" / "b.mp4", root / "videos" / "a.mp4"])
    with pytest.raises(UserError, match="would replace the input"):
        write(outputs, "videos/a.mp4", "mine")
    assert source.read_text() == "precious"


def test_a_kill_leaves_no_stranger(tmp_path, monkeypatch) -> None:
    """Killed before or after its content is recorded, in the middle of that, or after it is in place."""
    file = write(OutputFolder(tmp_path), "a.png", "first")

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            write(OutputFolder(tmp_path), "a.png", "second")
    OutputFolder(tmp_path).check([file])
    file.write_text("second")
    OutputFolder(tmp_path).check([file])

    record = tmp_path / RECORD
    record.write_bytes(record.read_bytes()[:-9])
    with pytest.raises(UserError, match="there already"):
        OutputFolder(tmp_path).check([file])
    file.write_text("first")
    write(OutputFolder(tmp_path), "a.png", "third")
    OutputFolder(tmp_path).check([file])


def test_records_of_any_content_are_read(tmp_path) -> None:
    file = write(OutputFolder(tmp_path), "a.png", "mine")
    with (tmp_path / RECORD).open("ab") as record:
        record.write(b'\n{}\n[1]\n[[], 1, 2]\nnull\n\xff\n["a.png", "x", []]\n' + b"[" * 100_000)
    OutputFolder(tmp_path).check([file])


def test_any_name_is_written(tmp_path) -> None:
    for name in ("é" * 126 + ".c", os.fsdecode(b"caf\xe9.png"), "line\nbreak.png", "x.png.part"):
        file = write(OutputFolder(tmp_path), name, "mine")
        OutputFolder(tmp_path).check([file])
        (tmp_path / f"{name[:100]}.png.part").write_text("another's")
        write(OutputFolder(tmp_path), name, "again")
    assert all(file.read_text() in ("again", "another's") for file in tmp_path.glob("*[!l]"))


def test_nothing_is_written_through_a_link(tmp_path) -> None:
    """A folder of unknown origin may hold links of the names that are written before and beside an output."""
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    out.mkdir()
    with OutputFolder(out).replacing(out / "a.png") as part:
        part.write_text("mine")
    part.symlink_to(victim)
    write(OutputFolder(out), "a.png", "again")
    assert (out / "a.png").read_text() == "again"
    (out / RECORD).unlink()
    (out / RECORD).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        write(OutputFolder(out, overwrite=True), "a.png", "third")
    assert victim.read_text() == "precious"
    assert (out / "a.png").read_text() == "again"


def test_what_lies_in_a_folder(tmp_path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    for inside in ("a", "a/b", "a/b/none/c", "a/b/../b", "link", "link/c"):
        assert lies_in(tmp_path / inside, tmp_path / "a")
    for outside in (".", "ab", "a/..", "link/../../c"):
        assert not lies_in(tmp_path / outside, tmp_path / "a")
    assert lies_in(tmp_path / "a" / "b", tmp_path / "link")
    assert not lies_in(tmp_path / "none", tmp_path / "none")


def test_half_a_file_is_none(tmp_path) -> None:
    with suppress(KeyError), replacing(tmp_path / "a") as part:
        part.write_text("half")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_two_commands_at_once(tmp_path) -> None:
    """Each writes its own file, of which the last stays; none is half the other's."""
    first, second = OutputFolder(tmp_path), OutputFolder(tmp_path)
    with first.replacing(tmp_path / "a") as part:
        part.write_text("first")
        with second.replacing(tmp_path / "a") as others, others.open("w") as half:
            half.write("sec")
            half.flush()
            assert part.read_text() == "first"
            half.write("ond")
        assert (tmp_path / "a").read_text() == "second"
    assert (tmp_path / "a").read_text() == "first"
    OutputFolder(tmp_path).check([tmp_path / "a"])
    assert not list(tmp_path.glob(".*.part"))


def test_outputs_are_no_inputs(tmp_path) -> None:
    photos = tmp_path / "photos"
    image = photos / "set" / "a.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(image)
    for name in ("overlays/a.png", "deep/labels/a.png"):
        root = photos / "out" if name[0] == "o" else photos
        with OutputFolder(root).replacing(root / name) as part:
            part.write_bytes(image.read_bytes())
    written = photos / "out" / "overlays" / "a.png"
    for inputs in ([str(photos)], [str(photos / "**" / "*.png")]):
        found, problems = find_images(inputs)
        assert [item.path for item in found] == [image]
        assert not problems
    assert [Path(record.path) for record in image_folder(photos).records] == [image]
    assert [item.path for item in find_images([str(written), str(written.parent)])[0]] == [written]
    # What somebody has put there instead is one.
    written.write_bytes(image.read_bytes() + b"\0")
    assert {item.path for item in find_images([str(photos)])[0]} == {image, written}
