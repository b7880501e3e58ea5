"""Names of devices, and what is said where there are none or no compiler for them."""

import sys

import pytest

from mask_rcnn_jax.errors import UserError
from mask_rcnn_jax.planning.devices import HARDWARE, target


@pytest.mark.parametrize("text", ["v5e:2x2", "v5p:4x4x4", "v6e:16x16", "tpu7x:2x2x1", "h200:8", "h100:1"])
def test_a_device_is_its_kind_and_how_many(text: str) -> None:
    assert str(target(text)) == text


def test_one_gpu_needs_no_number_and_case_does_not_matter() -> None:
    assert str(target("H200")) == "h200:1"
    assert str(target("TPU7x:2x2x1")) == "tpu7x:2x2x1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h20:8", "--device h20:8: unknown; the nearest are h200:8, h100:8"),
        ("v5:2x2", "--device v5:2x2: unknown; the nearest are v5"),
        ("zebra", "--device zebra: unknown; there are v5e:2x2, v5p:2x2x1, v6e:2x2, tpu7x:2x2x1, h100:8, h200:8"),
        ("h200:9", "--device h200:9: give h200:1 to h200:8, the GPUs of one machine"),
        ("h200:2x2", "--device h200:2x2: give h200:1 to h200:8"),
        ("v5e", "--device v5e: give the chips in each direction, such as v5e:2x2"),
        ("v5e:4", "--device v5e:4: give the chips in each direction"),
        ("v5e:0x2", "--device v5e:0x2: give the chips in each direction"),
    ],
)
def test_what_is_no_device_is_said_with_those_that_are(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        target(text)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "package", "extra"),
    [("v5e:2x2", "libtpu", "plan-tpu"), ("h200:8", "jax_cuda13_plugin", "plan-gpu")],
)
def test_a_compiler_that_is_not_installed_is_named(text: str, package: str, extra: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"--device {text} needs the package {package} .*; run: pip install 'mask-rcnn-jax\[{extra}\]'"
    with pytest.raises(UserError, match=words):
        target(text).require_compiler()


def test_facts_of_devices_agree_with_each_other() -> None:
    for hardware in HARDWARE.values():
        assert target(hardware.example).hardware is hardware
        assert hardware.peaks["half"] >= hardware.peaks["single"] > hardware.peaks["exact"]
        # Between a hundred and a thousand operations for a byte, as of all that multiply matrices.
        assert 100 < hardware.peaks["half"] / hardware.bandwidth < 1000
        assert hardware.link < hardware.bandwidth
