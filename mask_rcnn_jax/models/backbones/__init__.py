"""Networks from images to feature maps: the contract in `base.py`, one file a member."""
