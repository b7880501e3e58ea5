"""Names of published weights' classes."""

from mask_rcnn_jax.models import MaskRCNNConfig, architectures
from mask_rcnn_jax.pretrained import published_stuff


def test_published_kinds_of_stuff_are_those_of_cocos_panoptic_annotations():
    stuff = published_stuff(architectures.panoptic_fpn(MaskRCNNConfig()), "detectron2")
    assert len(stuff.ids) == len(set(stuff.names)) == 53
    assert list(stuff.ids) == sorted(stuff.ids)
    named = dict(zip(stuff.ids, stuff.names, strict=True))
    assert (named[92], named[149], named[187], named[200]) == ("banner", "road", "sky-other-merged", "rug-merged")
    assert published_stuff(architectures.panoptic_fpn(MaskRCNNConfig(), num_stuff=5), "detectron2") is None
    assert published_stuff(MaskRCNNConfig(), "detectron2") is None
