"""Detections in an image, and their forms."""
