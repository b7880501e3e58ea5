"""Trains a model: `python train.py --config configs/NAME.py --workdir DIR [--set a.b=c ...]`."""

import sys

if __name__ == "__main__":
    # Here and not above: the processes that load data import this file as well, and have no use for jax.
    from mask_rcnn_jax.cli.train import main

    sys.exit(main())
