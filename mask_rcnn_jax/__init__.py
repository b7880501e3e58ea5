"""Mask R-CNN in JAX."""
