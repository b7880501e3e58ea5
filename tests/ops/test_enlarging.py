"""Maps on finer grids beside PyTorch's."""

import jax
import numpy as np
import pytest

from mask_rcnn_jax.ops.pooling.enlarging import enlarge


@pytest.mark.parametrize(("shape", "factor"), [((2, 3, 5, 2), 2), ((1, 4, 1, 3), 4)])
def test_values_and_gradients_are_those_of_torch(shape, factor) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    maps, weights = rng.normal(size=shape), rng.normal(size=(shape[0], factor * shape[1], factor * shape[2], shape[3]))
    tensor = torch.tensor(maps.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.interpolate(tensor, scale_factor=factor, mode="bilinear", align_corners=False)
    (expected * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
    with jax.enable_x64():
        found, of_weights = jax.jit(lambda x: jax.vjp(lambda x: enlarge(x, factor), x))(maps)
        (gradient,) = jax.jit(of_weights)(weights)
        assert enlarge(found, 1) is found
    np.testing.assert_allclose(found, expected.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient, tensor.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-12, atol=1e-12)
