"""Networks that find something in RoIs or in whole images: the contract in `base.py`, one file a member."""
