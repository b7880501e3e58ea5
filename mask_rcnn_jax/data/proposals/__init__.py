"""Boxes that come with the images, for models that are given their proposals."""
