"""Programs as the compilers of TPUs and GPUs write them: layouts, memory on the chip, libraries, loops, groups."""

import pytest

from mask_rcnn_jax.planning.accounting import Account, account
from mask_rcnn_jax.planning.hlo import arrays
from mask_rcnn_jax.planning.products import Product
from mask_rcnn_jax.planning.stages import Stage, stage_of

TPU = """
HloModule jit_f, is_scheduled=true

%fused (param_0: f32[20,128], param_1: s32[]) -> f32[4,128] {
  %param_0 = f32[20,128]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %part = f32[4,128]{1,0:T(4,128)} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={4,128}
}

%body (state: (s32[], f32[20,128], s32[])) -> (s32[], f32[20,128], s32[]) {
  %state = (s32[]{:T(128)}, f32[20,128]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%state), index=0
  %here = s32[]{:T(128)S(6)} copy(%turn)
  %table = f32[20,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %step = s32[]{:T(128)} get-tuple-element(%state), index=2
  %next = s32[]{:T(128)} add(%here, %step)
  %rows = f32[4,128]{1,0:T(4,128)} fusion(%table, %here), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/rows/x"}
  ROOT %made = (s32[]{:T(128)}, f32[20,128]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%next, %table, %step)
}

%condition (state.1: (s32[], f32[20,128], s32[])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[20,128]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %end = s32[]{:T(128)} constant(17)
  ROOT %less = pred[]{:T(512)} compare(%at, %end), direction=LT
}

ENTRY %main (x: f32[20,100]) -> (s32[], f32[20,128], s32[]) {
  %x = f32[20,100]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
  %two = s32[]{:T(128)} constant(2)
  %first = s32[]{:T(128)} constant(3)
  %begin = s32[]{:T(128)} copy(%first)
  %copy-start = (f32[20,100]{1,0:T(8,128)S(1)}, f32[20,100]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[20,100]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %wide = f32[20,128]{1,0:T(8,128)} pad(%copy-done, %first), padding=0_0x0_28, metadata={op_name="jit(f)/wide/pad"}
  %sum = (f32[20,128]{1,0:T(8,128)S(1)}) all-reduce(%wide), replica_groups=GROUPS, to_apply=%add
  %all = (s32[]{:T(128)}, f32[20,128]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%begin, %wide, %two)
  ROOT %loop = (s32[]{:T(128)}, f32[20,128]{1,0:T(8,128)}, s32[]{:T(128)}) while(%all), condition=%condition, body=%body
}
"""
PADDED = 24 * 128 * 4  # bytes of twenty rows of 128, in tiles of eight rows

GPU = """
HloModule jit_step, is_scheduled=true

%update (param_0: f32[18,64], param_1: s32[], param_2: f32[64]) -> f32[18,64] {
  %param_0 = f32[18,64]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %param_2 = f32[64]{0} parameter(2)
  %row = f32[1,64]{1,0} bitcast(%param_2)
  %zero = s32[] constant(0)
  ROOT %updated = f32[18,64]{1,0} dynamic-update-slice(%param_0, %row, %param_1, %zero)
}

%put (param_0.1: f32[900,7], param_1.1: s32[5,1], param_2.1: f32[5,7]) -> f32[900,7] {
  %param_0.1 = f32[900,7]{1,0} parameter(0)
  %param_1.1 = s32[5,1]{1,0} parameter(1)
  %param_2.1 = f32[5,7]{1,0} parameter(2)
  ROOT %scattered = f32[900,7]{1,0} scatter(%param_0.1, %param_1.1, %param_2.1), update_window_dims={1}, to_apply=%add
}

ENTRY %main (rows: f32[18,64], i: s32[], row: f32[64], x: bf16[2,16,16,8], w: bf16[3,3,8,32]) -> bf16[2,8,8,32] {
  %rows = f32[18,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row.1 = f32[64]{0} parameter(2)
  %x = bf16[2,16,16,8]{3,2,1,0} parameter(3)
  %w = bf16[3,3,8,32]{3,2,1,0} parameter(4)
  %table = f32[900,7]{1,0} parameter(5)
  %at = s32[5,1]{1,0} parameter(6)
  %values = f32[5,7]{1,0} parameter(7)
  %a = f32[4,18,50]{2,1,0} parameter(8)
  %b = f32[4,50,7]{2,1,0} parameter(9)
  %fusion-start = ((f32[18,64]{1,0}, s32[], f32[64]{0}), f32[18,64]{1,0}, u32[]) fusion-start(%rows, %i, \
/*index=2*/%row.1), kind=kLoop, calls=%update, metadata={op_name="jit(step)/jvp(roi_align)/while/body/update"}
  %fusion-done = f32[18,64]{1,0} fusion-done(%fusion-start)
  %fusion = f32[900,7]{1,0} fusion(%table, %at, %values), kind=kInput, calls=%put
  %conv = (bf16[2,8,8,32]{3,2,1,0}, u8[4096]{0}) custom-call(%x, %w), WINDOW, \
custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/shard_map/jvp(res2)/conv_general_dilated"}
  %made = bf16[2,8,8,32]{3,2,1,0} get-tuple-element(%conv), index=0
  %back = (bf16[2,16,16,8]{3,2,1,0}, u8[0]{0}) custom-call(%made, %w), WINDOW, \
custom_call_target="__cudnn$convBackwardInput", metadata={op_name="jit(step)/transpose(jvp(res2))/conv"}
  %kernel = (bf16[3,3,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %made), WINDOW, \
custom_call_target="__cudnn$convBackwardFilter", metadata={op_name="jit(step)/transpose(jvp(res2))/conv"}
  %matmul = (f32[4,18,7]{2,1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"]},\
"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}}}
  ROOT %result = bf16[2,8,8,32]{3,2,1,0} get-tuple-element(%conv), index=0
}
""".replace("WINDOW", "window={size=3x3 stride=2x2 pad=0_1x0_1}, dim_labels=b01f_01io->b01f")


def kernels(found: Account) -> dict[str, float]:
    return {kernel.name: kernel.traffic for kernel in found.kernels}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[200000,128]{1,0:T(8,128)}", 200_000 * 128 * 4),
        ("f32[2000,4]{1,0:T(8,128)}", 2000 * 128 * 4),
        ("f32[2000,4]{0,1:T(4,128)}", 4 * 2048 * 4),  # the longer side is the inner one
        ("bf16[3,10,64]{2,1,0:T(8,128)(2,1)}", 3 * 16 * 128 * 2),
        ("s32[10]{0:T(128)}", 128 * 4),
        ("f32[]{:T(128)}", 128 * 4),
        ("bf16[64,64]{1,0:T(8,128)(2,1)S(1)}", 0),  # on the chip
        ("bf16[64,64]{1,0}", 64 * 64 * 2),
        ("(f32[3]{0}, /*index=1*/pred[5]{0}, token[])", 3 * 4 + 5),
    ],
)
def test_an_array_takes_whole_tiles_of_the_devices_memory(shape: str, size: int) -> None:
    assert sum(array.size for array in arrays(shape)) == size


def test_what_lies_on_the_chip_is_no_traffic() -> None:
    found = kernels(account(TPU.replace("GROUPS", "{{0,1,2,3}}")))
    assert found["copy-start"] == PADDED  # read, and written on the chip
    assert found["wide"] == PADDED + 512  # written; the number that fills up is read
    assert found["sum"] == PADDED  # read


def test_a_loop_without_a_note_turns_as_often_as_its_counter_says() -> None:
    found = account(TPU.replace("GROUPS", "{{0,1,2,3}}"))
    (loop,) = found.loops
    assert loop.turns == 7  # 3, 5, ... 15
    rows = next(kernel for kernel in found.kernels if kernel.name == "rows")
    assert rows.times == 7
    assert rows.traffic == pytest.approx(PADDED * 4 / 20 + 4 * 128 * 4)
    assert rows.stage == Stage("rows")
    (backwards,) = account(TPU.replace("compare(%at, %end)", "compare(%end, %at)")).loops
    assert backwards.turns is None


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[2,8]<=[16]", 8),
        ("mesh['data'=4] {'data'}", 4),
        ("mesh['data'=4,'height'=2] {'height'}", 2),
        ("{}", 16),
    ],
)
def test_devices_that_exchange_are_counted(groups: str, devices: int) -> None:
    (sum_,) = account(TPU.replace("GROUPS", groups), devices=16).collectives
    assert (sum_.devices, sum_.payload) == (devices, 20 * 128 * 4)


def test_an_asynchronous_fusion_updates_a_row_in_place() -> None:
    found = account(GPU)
    assert kernels(found)["fusion-start"] == 64 * 4 + 4 + 64 * 4
    assert found.kernels[0].stage == Stage("roi_align")


def test_a_scatter_reads_what_it_adds_to() -> None:
    found = kernels(account(GPU))
    assert found["fusion"] == pytest.approx(5 * 4 + 3 * (5 * 7 * 4))


def test_convolutions_of_a_library_count_as_others_and_its_scratch_space_does_not() -> None:
    found = account(GPU)
    image, kernel, made = 2 * 16 * 16 * 8 * 2, 3 * 3 * 8 * 32 * 2, 2 * 8 * 8 * 32 * 2
    moved = kernels(found)
    assert moved["conv"] == moved["back"] == moved["kernel"] == image + kernel + made
    operations = 2 * 2 * (8 * 3 - 1) ** 2 * 8 * 32
    parts = found.by_stage()
    assert parts[Stage("res2")].operations == operations
    assert parts[Stage("res2", backward=True)].operations == 2 * operations


def test_a_product_of_float32_in_full_is_known_from_others() -> None:
    matmul = next(kernel for kernel in account(GPU).kernels if kernel.name == "matmul")
    assert matmul.products == (Product(2 * 4 * 18 * 7 * 50, "exact"),)
    assert matmul.traffic == 4 * (4 * 18 * 50 + 4 * 50 * 7 + 4 * 18 * 7)


@pytest.mark.parametrize(
    ("op_name", "stage"),
    [
        ("jit(step)/shard_map/jvp(res2)/conv_general_dilated", Stage("res2")),
        ("jit(step)/shard_map/transpose(jvp(vmap(box_losses)))/mul", Stage("box_losses", backward=True)),
        ("jit(step)/jvp(roi_align)/cond/branch_0_fun/vmap(jit(_where))/select_n", Stage("roi_align")),
        ("jit(f)/shard_map/while/body/closed_call/proposals/while/body/add", Stage("proposals")),
        ("jit(step)/shard_map/jvp(vmap(jit(_uniform)))/vmap()/xor", Stage("")),
        ("jit(step)/shard_map/jvp()/stack;jvp(res3)/broadcast_in_dim", Stage("")),
        ("jit(step)/vmap(jit(_threefry_fold_in))/_program.<locals>.step/add", Stage("")),
        ("x", Stage("")),
    ],
)
def test_a_stage_is_the_outermost_named_scope(op_name: str, stage: Stage) -> None:
    assert stage_of(op_name) == stage
