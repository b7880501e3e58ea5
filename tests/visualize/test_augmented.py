"""Pictures of training examples show the image, masks where the instances are, and say what was left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mask_rcnn_jax.data import (
    DataConfig,
    LargeScaleJitterConfig,
    ShapesConfig,
    train_batches,
)
from mask_rcnn_jax.disk.output_folder import OutputFolder
from mask_rcnn_jax.visualize import write_augmented


def test_pictures_of_examples(tmp_path) -> None:
    source = ShapesConfig(root=str(tmp_path / "shapes"), num_train=4, num_val=1, image_size=64)
    source.prepare()
    dataset = source.load("train")
    config = DataConfig(source, canvas=(480, 480), max_instances=2, large_scale_jitter=LargeScaleJitterConfig())
    index, sheet, *pictures = write_augmented(
        dataset, replace(config, copy_paste=1.0), OutputFolder(tmp_path / "out"), 6, seed=3
    )
    assert len(pictures) == 6
    page = index.read_text()
    assert all(f'src="{path.name}"' in page for path in pictures)
    assert "for which there were no slots" in page
    assert np.asarray(Image.open(sheet)).shape == (2 * 320, 4 * 320, 3)

    batches = list(train_batches(dataset, replace(config, copy_paste=1.0, num_workers=0), 1, 3, range(6)))
    for path, batch in zip(pictures, batches, strict=True):
        assert path.name.endswith(f"_{batch.image_ids[0]}.png")
        picture, image = np.asarray(Image.open(path)), batch.inputs.images[0]
        assert picture.shape == image.shape
        changed = (picture != image).any(axis=2)
        seen = np.zeros(changed.shape, bool)
        for box, mask in zip(batch.inputs.ground_truth.boxes[0], batch.inputs.ground_truth.masks[0], strict=True):
            x1, y1, x2, y2 = np.round(box).astype(int)
            seen[max(y1 - 25, 0) : y2 + 25, max(x1 - 5, 0) : x2 + 160] = True  # a label may stand beside
            inside = changed[y1:y2, x1:x2]
            assert inside.mean() >= 0.9 * (mask > 127).mean() if inside.size > 100 else True
        assert not (changed & ~seen).any()
    assert [Path(path).name for path in pictures] == sorted(path.name for path in pictures)

    _, _, *fewer = write_augmented(dataset, config, OutputFolder(tmp_path / "out"), 1, seed=3)
    assert list((tmp_path / "out").glob("0*.png")) == fewer
