"""Evaluates a model: `python eval.py --workdir DIR [--checkpoint best|latest|STEP|PATH] [--set a.b=c ...]`."""

import sys

if __name__ == "__main__":
    from mask_rcnn_jax.cli.eval import main

    sys.exit(main())
