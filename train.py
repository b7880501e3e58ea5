"""Trains a model from a checkout: `python train.py ...` is `mask-rcnn train ...`."""

import sys

if __name__ == "__main__":
    # Here and not above: the processes that load data import this file as well, and need none of it.
    from mask_rcnn_jax.cli.main import entry

    entry(["train", *sys.argv[1:]])
