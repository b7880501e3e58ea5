"""What the tests call is checked: types of all functions, and sizes of axes where arrays are named."""

from collections.abc import Sequence

import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float

from mask_rcnn_jax.data import resized_size
from mask_rcnn_jax.ops import boxes
from tests.typechecker import jaxtyped, typechecker

checked = jaxtyped(typechecker=typechecker)


@checked
def plain(count: float, names: Sequence[str] = ()) -> str:
    return names[0] if names else count


def test_the_package_is_checked():
    with pytest.raises(BeartypeCallHintViolation, match="height"):
        resized_size("80", 60, 48, 64)
    with pytest.raises(jaxtyping.TypeCheckError, match="boxes"):
        boxes.area(np.zeros((3, 5), np.float32))


def test_functions_that_name_no_arrays_have_their_types_checked(monkeypatch):
    assert plain(1, ["a"]) == "a"  # an int is a float
    with pytest.raises(BeartypeCallHintViolation, match="count"):
        plain("1", ["a"])
    with pytest.raises(BeartypeCallHintViolation, match="return"):
        plain(1.5)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert plain(1.5) == 1.5


def test_axes_of_one_name_are_of_one_size():
    @checked
    def paired(a: Float[np.ndarray, " N"], others: Sequence[Float[np.ndarray, " N"] | None]) -> None:
        pass

    paired(np.zeros(3, np.float32), [np.zeros(3, np.float32)])
    with pytest.raises(jaxtyping.TypeCheckError, match="N=3"):
        paired(np.zeros(3, np.float32), [np.zeros(4, np.float32)])
