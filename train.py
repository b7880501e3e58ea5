"""Trains a model: `python train.py --config configs/NAME.py --workdir DIR [--set a.b=c ...]`."""

import sys

from mask_rcnn_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
