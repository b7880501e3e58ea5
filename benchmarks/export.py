"""Size, latency and memory of a model run three ways: jitted here, from StableHLO, and from ONNX in ONNX Runtime.

    python benchmarks/export.py --size 512

The model is R50-FPN for COCO's 80 classes with random weights, from bytes to detections, one image a call. Each way
runs in a process of its own: seconds until the first result (load, compile, run), the median of further calls, and the
process's peak of resident memory, on CPU.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WAYS = {"jit": "", "StableHLO": "model.stablehlo", "ONNX Runtime": "model.onnx"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the image and the canvas, pixels")
    parser.add_argument("--calls", type=int, default=5, help="calls after the first")
    parser.add_argument("--way", choices=WAYS, help="measures this way in this process, from the files in --folder")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.way is not None:
        print(json.dumps(measure(options.way, options.folder, options.size, options.calls)))
        return
    print("| way | file, MB | first result, s | latency, ms | peak memory, MB |\n| --- | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", EXPORT, folder, str(options.size)]
        subprocess.run(command, check=True, cwd=Path(__file__).parent)
        for way, name in WAYS.items():
            arguments = ["--size", str(options.size), "--calls", str(options.calls), "--way", way, "--folder", folder]
            done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            size = f"{(Path(folder) / name).stat().st_size / 1e6:.0f}" if name else ""
            print(f"| {way} | {size} | {found['first']:.1f} | {found['latency'] * 1e3:.0f} | {found['peak']:.0f} |")


# In a process of its own: what exporting takes is not what running takes.
EXPORT = """
import sys
from pathlib import Path
from export import model
from mask_rcnn_jax.export.stablehlo import export_stablehlo
from mask_rcnn_jax.export.to_onnx import export_onnx
folder, exportable = Path(sys.argv[1]), model(int(sys.argv[2]))
export_stablehlo(exportable, folder / "model.stablehlo")
export_onnx(exportable, folder / "model.onnx")
"""


def model(size: int):
    """Return the exported model. Imported here: the files' own ways need nothing of it."""
    import jax

    from mask_rcnn_jax.export.program import Exportable, ExportSettings
    from mask_rcnn_jax.export.resize import Preprocessing
    from mask_rcnn_jax.models import MaskRCNNConfig, init

    config = MaskRCNNConfig()
    settings = ExportSettings((size, size), Preprocessing(size, size, (size, size)))
    return Exportable(config, init(config, jax.random.key(0)), tuple(map(str, range(80))), settings)


def measure(way: str, folder: Path, size: int, calls: int) -> dict[str, float]:
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    inputs = image, np.full((1, 2), size, np.int32)
    start = time.perf_counter()
    if way == "jit":
        import jax

        from mask_rcnn_jax.export.program import program

        exportable = model(size)
        start = time.perf_counter()  # weights are here as after training: what is counted is compiling and running
        compiled = jax.jit(program(exportable.config, exportable.settings))

        def call(images, sizes):
            return jax.device_get(compiled(exportable.variables, images, sizes))
    else:
        from mask_rcnn_jax.export.runtime import load

        call = load(folder / WAYS[way]).call
    call(*inputs)
    first = time.perf_counter() - start
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call(*inputs)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first": first, "latency": statistics.median(seconds), "peak": peak}


if __name__ == "__main__":
    main()
