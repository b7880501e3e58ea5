"""Labels of every pixel of an image: COCO's panoptic annotations."""
