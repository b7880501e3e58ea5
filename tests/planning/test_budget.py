"""Least times and images that fit, of programs whose figures are given."""

from dataclasses import replace

import pytest

from mask_rcnn_jax.planning.accounting import Account, Collective, Kernel
from mask_rcnn_jax.planning.budget import fit, floor, remedy
from mask_rcnn_jax.planning.compiling import needed_of
from mask_rcnn_jax.planning.devices import GIB, HARDWARE
from mask_rcnn_jax.planning.products import Product
from mask_rcnn_jax.planning.stages import Stage
from tests.planning.plans import a_plan

V5E = HARDWARE["v5e"]  # 819 GB/s, 197 TFLOP/s, 200 GB/s to others


def test_each_kernel_takes_the_longer_of_its_two_times() -> None:
    half = Product(197e9, "half")  # a millisecond
    kernels = [
        Kernel("moves", "add", Stage("a"), 2, 819e6, ()),  # a millisecond, twice
        Kernel("multiplies", "dot", Stage("a"), 1, 819e5, (half, half, half)),
        Kernel("exact", "dot", Stage("b", backward=True), 3, 0.0, (Product(197e9 / 6, "exact"),)),
    ]
    sum_ = Collective("all-reduce", Stage(""), times=1, payload=400_000_000, devices=2)
    least = floor(Account(kernels, collectives=[sum_]), V5E)
    assert least.traffic == pytest.approx(2.1e-3)
    assert least.products == pytest.approx(6e-3)
    assert least.exchange == pytest.approx(2e-3)  # half of it twice
    assert least.seconds == least.products
    assert least.in_turn == pytest.approx(2e-3 + 3e-3 + 3e-3 + 2e-3)


def test_images_that_fit_follow_from_two_batches() -> None:
    small, large = a_plan(batch=8, needed=2 * GIB), a_plan(batch=16, needed=3 * GIB)
    found = fit(small, [small, large])
    assert found is not None
    assert found.images == int((15.75 - 1) / 0.5)  # two images more add a GiB
    assert "batches of 8 and 16" in found.how
    other = replace(large, remat=("backbone",))
    alone = fit(small, [small, other])
    assert alone is not None
    assert "if all but" in alone.how


def test_images_that_fit_follow_from_one_batch_and_its_state() -> None:
    found = fit(a_plan(batch=16, needed=3 * GIB, fixed=1 * GIB))
    assert found is not None
    assert found.images == int((15.75 - 1) / 0.5)
    assert fit(a_plan(batch=16, needed=None)) is None


def test_what_does_not_fit_is_said_with_what_would() -> None:
    plan = a_plan(batch=64, needed=33 * GIB, fixed=1 * GIB)  # 16 images a device, 2 GiB each
    said = remedy(plan, [plan])
    assert said.startswith("a batch of 64 does not fit v5e:2x2: a device needs 33.0 GiB of 15.8 GiB; try --batch 28 (7")
    assert "10 devices or more for these, or --set accumulation_steps=3, or --remat backbone" in said
    assert remedy(replace(plan, remat=("backbone",), what="detect"), []).count("--") == 2


@pytest.mark.parametrize(
    ("failure", "needed"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded", 20.5 * GIB),
        (
            "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries"
            " (512.00M) exceeds available HBM (15.75G).",
            512 * 2**20,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory", None),
        ("UNIMPLEMENTED: Used 2.0G of wit", None),
    ],
)
def test_the_compilers_sentences_about_memory_are_understood(failure: str, needed: float | None) -> None:
    assert needed_of(failure) == needed
