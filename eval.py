"""Evaluates a model: `python eval.py --workdir DIR [--checkpoint best|latest|STEP|PATH] [--set a.b=c ...]`."""

import sys

from mask_rcnn_jax.cli.eval import main

if __name__ == "__main__":
    sys.exit(main())
