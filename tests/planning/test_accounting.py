"""Accounts of small programs, compiled for CPU, whose traffic and products are counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mask_rcnn_jax.planning.accounting import ASSUMED_TURNS, Account, account
from mask_rcnn_jax.planning.stages import Stage
from mask_rcnn_jax.sharding import data_mesh


def of(function, *shapes: jax.ShapeDtypeStruct) -> Account:
    return account(jax.jit(function).lower(*shapes).compile().as_text())


def floats(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_a_matrix_product_reads_both_and_writes_one():
    found = of(lambda a, b: a @ b, floats(64, 128), floats(128, 32))
    assert found.traffic == 4 * (64 * 128 + 128 * 32 + 64 * 32)
    assert found.operations == 2 * 64 * 128 * 32


def test_a_convolution_multiplies_no_padding_forward_and_backward():
    def loss(kernel, image):
        with jax.named_scope("layer"):
            numbers = ("NHWC", "HWIO", "NHWC")
            made = jax.lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=numbers)
            return (jnp.tanh(made) ** 2).sum()

    found = of(jax.grad(loss, (0, 1)), floats(3, 3, 8, 16), floats(2, 32, 32, 8))
    # 16 cells a side and 3 of the kernel meet the image but once, where the last cell's last lies in the padding.
    once = 2 * 2 * (16 * 3 - 1) ** 2 * 8 * 16
    parts = found.by_stage()
    assert parts[Stage("layer")].operations == once
    assert parts[Stage("layer", backward=True)].operations == 2 * once


def test_a_loop_moves_as_often_as_it_turns():
    def ten_times(state):
        def turn(state, _):
            with jax.named_scope("turn"):
                return jnp.sin(state) * 2 + 1, None

        return jax.lax.scan(turn, state, length=10)[0]

    found = of(ten_times, floats(1000))
    (loop,) = found.loops
    assert (loop.turns, loop.times) == (10, 1)
    assert found.unknown_loops == []
    assert found.by_stage()[Stage("turn")].traffic == 10 * 2 * 4000


def test_a_loop_of_unknown_length_is_assumed_to_turn_some_times():
    def until_it_is_large(state):
        with jax.named_scope("grow"):
            return jax.lax.while_loop(lambda state: state[0] < 100, lambda state: jnp.sin(state) + 1, state)

    found = of(until_it_is_large, floats(1000))
    assert [loop.turns for loop in found.unknown_loops] == [None]
    assert found.host_waits == ASSUMED_TURNS + 1
    bodies = [kernel for kernel in found.kernels if kernel.traffic == 8000 and kernel.times == ASSUMED_TURNS]
    assert bodies


def test_a_gather_reads_its_rows_and_not_the_table():
    found = of(lambda table, rows: table[rows], floats(100_000, 64), jax.ShapeDtypeStruct((10,), jnp.int32))
    assert found.traffic == 10 * 4 + 2 * (10 * 64 * 4)


def test_a_sum_of_what_is_gathered_reads_no_more():
    def summed(table, rows):
        with jax.named_scope("rows"):
            return jnp.sin(table[rows]).sum(axis=1)

    found = of(summed, floats(100_000, 64), jax.ShapeDtypeStruct((10,), jnp.int32))
    assert 10 * 64 * 4 < found.traffic < 4 * (10 * 64 * 4)


def test_an_update_of_a_row_moves_the_row():
    def rows_in_turn(table):
        def turn(i, table):
            with jax.named_scope("update"):
                return jax.lax.dynamic_update_slice(table, jnp.sin(table[i][None]), (i + 1, 0))

        return jax.lax.fori_loop(0, 50, turn, table)

    found = of(rows_in_turn, floats(64, 128))
    row, number = 128 * 4, 4
    # The row is read, its sine is written, read again and put into the table; either kernel reads a number.
    assert found.by_stage()[Stage("update")].traffic == 50 * (4 * row + 2 * number)


def test_a_sum_over_devices_sends_nearly_twice_what_each_has():
    mesh = data_mesh(jax.devices())
    summed = jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=P("data"), out_specs=P())
    (sum_,) = of(summed, floats(8000)).collectives
    assert (sum_.kind, sum_.devices, sum_.payload) == ("all-reduce", 8, 4000)
    assert sum_.sent == 2 * 7 / 8 * 4000


def test_of_a_condition_the_dearest_branch_counts():
    def either(condition, table):
        return jax.lax.switch(condition, [lambda x: x[:, :10] @ x[:10], lambda x: x @ x @ x, lambda x: x], table)

    found = of(either, jax.ShapeDtypeStruct((), jnp.int32), floats(100, 100))
    assert found.operations == 2 * (2 * 100**3)
    assert found.host_waits == len(found.conditions) == 1


def test_what_holds_no_program_is_refused():
    with pytest.raises(ValueError, match="no compiled program"):
        account("HloModule jit_f\n")
