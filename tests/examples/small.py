"""Where the examples lie, and settings with which they take seconds."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
BACKBONE, DATA, HEAD = (ROOT / "examples" / f"custom_{name}.py" for name in ("backbone", "data", "head"))
SMALL = (
    "data.short_side=64 data.short_side_eval=64 data.max_side=64 data.canvas=64,64 steps=2 batch_size=8 log_every=1"
    " model.backbone=FPNConfig model.backbone.channels=8 model.rpn.features=p2,p3,p4 model.rpn.sizes=(16),(32),(64)"
    " model.rpn.samples=16"
    " model.box_head.pooler.features=p2,p3 model.box_head.fc_channels=16 model.box_head.samples=8 model.mask_head=none"
    " model.rpn.pre_nms_train=32 model.rpn.post_nms_train=32 model.rpn.pre_nms_test=32 model.rpn.post_nms_test=16"
)
