"""Evaluates a model from a checkout: `python eval.py ...` is `mask-rcnn eval ...`."""

import sys

if __name__ == "__main__":
    from mask_rcnn_jax.cli.main import main

    sys.exit(main(["eval", *sys.argv[1:]]))
