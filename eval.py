"""Evaluates a model from a checkout: `python eval.py ...` is `mask-rcnn eval ...`."""

import sys

if __name__ == "__main__":
    from mask_rcnn_jax.cli.main import entry

    entry(["eval", *sys.argv[1:]])
