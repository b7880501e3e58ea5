"""`mask-rcnn predict`: images, videos, and the files it writes."""
