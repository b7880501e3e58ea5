"""Tables of names, one file a publisher or a family of backbones; `table.py` says what a table is."""
