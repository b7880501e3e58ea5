"""`mask-rcnn predict INPUTS...`: finds instances in images, and writes them in the forms that are asked for.

mask-rcnn predict photos --checkpoint runs/mine --out predictions
mask-rcnn predict 'scans/**/*.tif' --checkpoint runs/mine --out predictions --format labels csv geojson

mask-rcnn predict field.tif --checkpoint runs/mine --out predictions --tile 800 --overlap 200
mask-rcnn predict street.mp4 --checkpoint runs/mine --out predictions

An input is an image, a video, a folder with the folders in it, or a pattern. A video, or with --sequence the images of
each input, becomes a video in which an instance keeps its colour. What cannot be used is left out and named at the end;
the exit status is then 1, and 2 for a mistake on the command line.
"""

import argparse
import functools
import glob
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from tqdm import tqdm

from mask_rcnn_jax.cli.command import run
from mask_rcnn_jax.cli.model import add_model_options, model_of
from mask_rcnn_jax.cli.numbers import number
from mask_rcnn_jax.cli.prediction.outputs import FORMATS, Writer
from mask_rcnn_jax.cli.prediction.videos import predict_sequences, predict_videos, video_files
from mask_rcnn_jax.data import read_image
from mask_rcnn_jax.disk.files import is_folder
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.disk.places import check_place
from mask_rcnn_jax.errors import UserError, printable
from mask_rcnn_jax.extras import require
from mask_rcnn_jax.inference import ImageLike, Model, Predictor, use_compile_cache
from mask_rcnn_jax.inference.augmented import AugmentationConfig, AugmentedPredictor
from mask_rcnn_jax.inference.predictor import Streaming
from mask_rcnn_jax.inference.tiling import TiledPredictor, TilingConfig
from mask_rcnn_jax.media.inputs import InputImage, find_images, frame_count
from mask_rcnn_jax.media.video import VIDEO_SUFFIXES
from mask_rcnn_jax.ranges import Range

Sequences = list[tuple[str, list[InputImage]]]  # names, and the frames of each


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, predicts, and returns the exit status."""
    options = _parser().parse_args(arguments)
    failures: list[str] = []
    status = run(lambda: _predict(options, failures))
    if failures:
        print(f"failed: {len(failures)}", *map(printable, failures), sep="\n  ", file=sys.stderr)
    return status or int(bool(failures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mask-rcnn predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, video, folder, or pattern")
    add_model_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of what is written")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files in DIR that no earlier predict has written, too"
    )
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["overlay"],
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)} (default: overlay)",
    )
    parser.add_argument(
        "--score-threshold",
        type=number(float, Range(0, 1)),
        default=0.5,
        metavar="S",
        help="least score that counts (default: 0.5)",
    )
    parser.add_argument(
        "--batch-size",
        type=number(int, Range(1)),
        metavar="N",
        help="images at once (default: 1 on CPU, else 4 a device)",
    )
    parser.add_argument(
        "--tile",
        type=number(int, Range(16)),
        metavar="PIXELS",
        help="look at images through overlapping tiles of this side",
    )
    parser.add_argument(
        "--overlap",
        type=number(int, Range(1)),
        metavar="PIXELS",
        help="least overlap of tiles (default: a quarter of a tile)",
    )
    parser.add_argument(
        "--augment", action="store_true", help="look at each image at several sizes and mirrored: slower, better"
    )
    parser.add_argument("--no-flip", action="store_true", help="with --augment: at several sizes, but not mirrored")
    parser.add_argument("--sequence", action="store_true", help="the images of each input are the frames of a video")
    parser.add_argument(
        "--fps",
        type=number(Fraction, Range(0, 1000, above_low=True)),
        default=Fraction(25),
        metavar="F",
        help="frames a second of sequences (default: 25)",
    )
    parser.add_argument(
        "--max-pixels",
        type=number(int, Range(1, 10**12)),
        metavar="N",
        help="refuse larger images (default: the model's data.max_pixels)",
    )
    return parser


def _predict(options: argparse.Namespace, failures: list[str]) -> None:
    check_place("--out", options.out)
    if "geojson" in options.format:
        require("outlines", "--format geojson")
    if options.tile is not None:
        require("tiles", "--tile")
    sequences, images, videos = _inputs(options, failures)
    if not (sequences or images or videos):
        return
    of_sequences = [image for _, frames in sequences for image in frames]
    inputs = [image.path for image in (*images, *videos, *of_sequences)]
    outputs = OutputFolder(options.out, inputs, options.overwrite)
    outputs.check(_files(options, sequences, images, videos))
    use_compile_cache()
    model = model_of(options)
    if options.max_pixels is not None:
        model = replace(model, data=replace(model.data, max_pixels=options.max_pixels))
    if model.licence:
        print(f"licence of the weights: {printable(model.licence)}")
    predictor = _predictor(options, model)
    began = time.monotonic()
    places = []
    if images:
        count, places = _predict_images(predictor, model, images, options.format, outputs, failures)
        print(f"{count} instances in {len(images)} images", end=", ")
    if sequences or videos:
        with _writing(options.out):
            frames, count = predict_videos(predictor, videos, model.data.max_pixels, outputs, failures)
            more = predict_sequences(predictor, sequences, options.fps, model.data.max_pixels, outputs, failures)
        print(f"{count + more[1]} instances in {frames + more[0]} frames", end=", ")
        places.append(options.out / "videos")
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in predictor.shapes)
    print(f"{time.monotonic() - began:.1f} s; programs: {shapes or 'none'}", *places, sep="\n")


def _inputs(options: argparse.Namespace, failures: list[str]) -> tuple[Sequences, list[InputImage], list[InputImage]]:
    """Named sequences of images, single images, and videos; what is none of them is noted in `failures`."""
    found, problems = find_images(options.inputs)
    failures += problems
    videos = [image for image in found if image.path.suffix.lower() in VIDEO_SUFFIXES]
    images = [image for image in found if image not in videos]
    if not options.sequence:
        return [], images, videos
    sequences: Sequences = []
    for text in options.inputs:
        paths = {image.path for image in find_images([text])[0]}
        if frames := [image for image in images if image.path in paths]:
            taken = [video.name for video in videos] + [name for name, _ in sequences]
            sequences.append((_sequence_name(text, taken), frames))
    return sequences, [], videos


def _files(
    options: argparse.Namespace, sequences: Sequences, images: list[InputImage], videos: list[InputImage]
) -> Iterator[Path]:
    """Return the files that may be written."""
    for name in dict.fromkeys(options.format):
        for image in images:
            yield from FORMATS[name].files(options.out, image)
    for name in (*(video.name for video in videos), *(name for name, _ in sequences)):
        yield from video_files(options.out, name)


def _sequence_name(text: str, taken: Sequence[str]) -> str:
    """The last folder that an input spells out, with a number where it is taken."""
    folder = Path(text) if is_folder(text) else Path(text).parent
    name = next((part for part in reversed(folder.resolve().parts[1:]) if not glob.has_magic(part)), "sequence")
    numbered = (f"{name}_{k}" for k in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if n not in taken)


def _predictor(options: argparse.Namespace, model: Model) -> Streaming:
    if options.overlap is not None and options.tile is None:
        raise UserError("--overlap is that of tiles; give --tile, too")
    # Scores are averaged over tiles before they are compared with the threshold.
    threshold = None if options.tile else options.score_threshold
    if options.no_flip and not options.augment:
        raise UserError("--no-flip is a way to augment; give --augment, too")
    if options.augment:
        if options.batch_size is not None:
            raise UserError("--augment looks at one image after another; leave --batch-size away")
        predictor = AugmentedPredictor(model, AugmentationConfig(flip=not options.no_flip), score_threshold=threshold)
    else:
        predictor = Predictor(model, score_threshold=threshold, batch_size=options.batch_size)
    if options.tile is None:
        return predictor
    if "panoptic" in options.format and model.stuff.names:
        raise UserError("--format panoptic: kinds of stuff are not put together from tiles; leave --tile away")
    tiling = TilingConfig(options.tile, options.overlap)
    return TiledPredictor(predictor, tiling, options.score_threshold, model.data.max_pixels)


def _predict_images(
    predictor: Streaming,
    model: Model,
    images: Sequence[InputImage],
    formats: Sequence[str],
    outputs: OutputFolder,
    failures: list[str],
) -> tuple[int, list[Path]]:
    """Writes what is found in images; returns the number of instances, and where things were written."""
    writers = [FORMATS[name](outputs, model.category_ids, model.stuff) for name in dict.fromkeys(formats)]
    with _writing(outputs.root), ExitStack() as stack:
        for writer in writers:
            stack.enter_context(writer)
        count = _write_all(predictor, model, images, writers, failures)
    return count, [writer.place for writer in writers]


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None


def _write_all(
    predictor: Streaming, model: Model, images: Sequence[InputImage], writers: Sequence[Writer], failures: list[str]
) -> int:
    """Writes what is found in each image, notes in `failures` what fails, and returns the number of instances."""
    names = {str(image.path): image.name for image in images}
    count = 0
    with tqdm(total=len(images), unit="image", disable=None) as bar:

        def failed(image: ImageLike, error: UserError) -> None:
            failures.append(str(error))
            bar.update()

        for found in predictor.stream([image.path for image in images], failed):
            assert found.path is not None
            read = functools.cache(functools.partial(read_image, found.path, model.data.max_pixels))
            for writer in writers:
                try:
                    writer.write(names[found.path], found, read)
                except UserError as error:
                    failures.append(f"What was found in {found.path} cannot be written: {error}")
            if (frames := frame_count(Path(found.path))) > 1:
                note = f"{found.path} has {frames} frames; the first one is used"
                bar.write(printable(note), file=sys.stderr)
            count += len(found)
            bar.update()
    return count
