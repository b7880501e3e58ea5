"""Names of published weights' classes, and predictors that go by the names of kinds of stuff."""

from dataclasses import replace

import numpy as np

from mask_rcnn_jax.models import MaskRCNNConfig, NormConfig, SemanticHeadConfig, architectures
from mask_rcnn_jax.pretrained import ByName, match_kinds, published_stuff, transplant
from tests.pretrained.naming import flat, random_variables
from tests.tiny import smallest_model


def test_published_kinds_of_stuff_are_those_of_cocos_panoptic_annotations():
    stuff = published_stuff(architectures.panoptic_fpn(MaskRCNNConfig()), "detectron2")
    assert len(stuff.ids) == len(set(stuff.names)) == 53
    assert list(stuff.ids) == sorted(stuff.ids)
    named = dict(zip(stuff.ids, stuff.names, strict=True))
    assert (named[92], named[149], named[187], named[200]) == ("banner", "road", "sky-other-merged", "rug-merged")
    assert published_stuff(architectures.panoptic_fpn(MaskRCNNConfig(), num_stuff=5), "detectron2") is None
    assert published_stuff(MaskRCNNConfig(), "detectron2") is None


def test_the_predictor_of_stuff_goes_by_the_names_of_kinds():
    """As many kinds may be others, or stand in another order; that of all things is always there."""
    head = SemanticHeadConfig(features=("res3",), num_kinds=3, channels=8, norm=NormConfig(kind="none"))
    config = replace(smallest_model(), heads=(head,))
    given, initial = (random_variables(config, seed=seed) for seed in (1, 2))
    for names, places in ((("grass", "sky"), (0, 2, 1)), (("road", "sky"), (0, None, 1))):
        by_name = ByName(kinds=match_kinds(("sky", "grass"), names))
        variables, report = transplant(given, config, initial, by_name)
        for leaf in ("kernel", "bias"):
            found, before, random = (
                flat(tree)[f"semantic_head/predictor/{leaf}"] for tree in (variables, given, initial)
            )
            for place, other in enumerate(places):
                expected = random[..., place] if other is None else before[..., other]
                np.testing.assert_array_equal(found[..., place], expected)
        said = "kept by name for 2 of its 3" if None in places else "reordered by name: its kinds of stuff are the same"
        assert said in report.lines()[1]
    _, report = transplant(given, config, initial, ByName(kinds=match_kinds(("sky", "grass"), ("sky", "grass"))))
    assert report.lines()[1] == "  predictors kept: its kinds of stuff are the same"
