"""Flops, bytes and collectives of compiled programs, on one written by hand and on small ones."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.plan.collectives import Collective, group_size
from balcap_jax.plan.costs import costs_of, saved_for_backward
from balcap_jax.plan.hlo import Array, Program, parse_instruction, parse_shape
from balcap_jax.runs.flops import flops_of

# A loop of 5 over layers, in it a matmul by a convolution, a gather of weights and a sum over the
# wires; after it a kernel, a collective in two fragments and a sum of which each device keeps a
# part.
BY_HAND = (Path(__file__).parents[1] / "golden" / "by_hand.hlo").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def costs():
    return costs_of(Program(BY_HAND), attended={512: 0.5})


def test_flops_count_loops_and_kernels(costs):
    # 5 runs of 8 x 16 x 32 products; scores and values of 2 x 3 heads, half of the blocks.
    matmul = 5 * 2 * 8 * 16 * 32
    kernel = 2 * 2 * (2 * 3) * 512 * 512 * 64 * 0.5
    assert costs.flops == matmul + kernel
    assert costs_of(Program(BY_HAND), trips=1).flops == matmul / 5 + 2 * kernel


def test_collectives_by_kind_with_trips(costs):
    y = 8 * 32 * 2  # bytes of bf16[8,32]
    assert costs.wire_bytes_by_kind() == {
        "all-gather": 5 * 3 * y,  # what it has goes to 3 others
        "all-reduce": 5 * 2 * y / 2,  # 2 (n - 1) / n
        "collective-permute": 8 * 16 * 2,  # two fragments of one
        "reduce-scatter": 64 * 4 * 3 / 4,
    }
    assert {c.kind: (c.group, c.times) for c in costs.collectives} == {
        "all-gather": (4, 5),
        "all-reduce": (2, 5),
        "collective-permute": (2, 1),
        "reduce-scatter": (4, 1),
    }


def test_bytes_of_main_memory(costs):
    # The fusion reads x and one slice of the stack; its result is in the memory beside the chip's
    # units, and so is what the collectives read. They write 32 x 32 and 8 x 32.
    loop = 5 * (8 * 16 * 2 + 16 * 32 * 2 + 32 * 32 * 2 + 8 * 32 * 2)
    kernel = 2 * 2 * 3 * 512 * 64 * 2
    fusions = 2 * (2 * 8 * 16 * 2) + 64 * 4 + 16 * 4
    copy = 2 * 8 * 16 * 2
    assert costs.bytes == loop + kernel + fusions + copy
    assert sum(moved for _, moved in costs.phases) == costs.bytes
    assert len(costs.phases) == 2  # the loop, and what is around it


def test_a_fusion_within_a_fusion_reads_its_slice_and_what_is_handed_on_is_not_read():
    """As compiled for TPUs: a layer's matrix is cut out within a matmul, and beside that goes on a
    gather, whose buffers are among the operands and the results.
    """
    text = """\
%cut (stack: bf16[28,64,32], i: s32[]) -> bf16[64,32] {
  %stack = bf16[28,64,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,64,32]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,64,32}
  ROOT %flat = bf16[64,32]{1,0} bitcast(%slice)
}

%view (y: bf16[256]) -> bf16[8,32] {
  %y = bf16[256]{0} parameter(0)
  ROOT %rows = bf16[8,32]{1,0} bitcast(%y)
}

%async_collective_fusion.1 (x: bf16[256], w: bf16[28,64,32], j: s32[], part: bf16[4,100], whole: bf16[4,400]) -> (bf16[8,64], bf16[4,100], bf16[4,400]) {
  %x = bf16[256]{0} parameter(0)
  %w = bf16[28,64,32]{2,1,0} parameter(1)
  %j = s32[] parameter(2)
  %part = bf16[4,100]{1,0} parameter(3)
  %whole = bf16[4,400]{1,0} parameter(4)
  %one = bf16[64,32]{1,0} fusion(%w, %j), kind=kLoop, calls=%cut
  %viewed = bf16[8,32]{1,0} fusion(%x), kind=kLoop, calls=%view
  %dot = bf16[8,64]{1,0} dot(%viewed, %one), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %gather = bf16[4,400]{1,0} all-gather(%part), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={1}
  ROOT %results = (bf16[8,64]{1,0}, bf16[4,100]{1,0}, bf16[4,400]{1,0}) tuple(%dot, %part, %gather)
}

ENTRY %main (x.1: bf16[256], w.1: bf16[28,64,32], j.1: s32[], p.1: bf16[4,100], g.1: bf16[4,400]) -> (bf16[8,64], bf16[4,100], bf16[4,400]) {
  %x.1 = bf16[256]{0} parameter(0)
  %w.1 = bf16[28,64,32]{2,1,0} parameter(1)
  %j.1 = s32[] parameter(2)
  %p.1 = bf16[4,100]{1,0} parameter(3)
  %g.1 = bf16[4,400]{1,0} parameter(4)
  ROOT %f = (bf16[8,64]{1,0}, bf16[4,100]{1,0}, bf16[4,400]{1,0}) fusion(%x.1, %w.1, %j.1, %p.1, %g.1), kind=kOutput, calls=%async_collective_fusion.1
}
"""  # noqa: E501 - as the compiler writes it
    layer, others = 64 * 32, 8 * 32 + 8 * 64
    index = 4
    found = costs_of(Program(text))
    assert found.bytes - index == 2 * (layer + others)
    assert found.flops == 2 * 8 * 64 * 32
    assert found.wire_bytes == 3 * 4 * 100 * 2
    # A fusion that hides nothing reads its operands and writes its results; of the stack the slice.
    plain = costs_of(Program(text.replace("async_collective_fusion", "fused")))
    assert plain.bytes - index == 2 * (layer + others + 2 * 4 * 100 + 4 * 400)


def test_what_the_backward_pass_finds_kept():
    program = Program(BY_HAND)
    # f32[5,8,16]; the other stack has the shape of a weight.
    assert saved_for_backward(program, {(5, 16, 32)}) == 5 * 8 * 16 * 4
    assert saved_for_backward(program, {(5, 16, 32), (5, 8, 16)}) == 0


def test_an_unrolled_loop_counts_in_larger_steps():
    """From 1 below 8 by 2: 1, 3, 5, 7."""
    text = """\
%condition (s: (s32[], f32[2])) -> pred[] {
  %s = (s32[], f32[2]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant(8)
  ROOT %more = pred[] compare(%i, %limit), direction=LT
}

%body (t: (s32[], f32[2])) -> (s32[], f32[2]) {
  %t = (s32[], f32[2]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t), index=0
  %x = f32[2]{0} get-tuple-element(%t), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i.1, %two)
  ROOT %out = (s32[], f32[2]{0}) tuple(%next, %x)
}

ENTRY %main (x: f32[2]) -> (s32[], f32[2]) {
  %x.1 = f32[2]{0} parameter(0)
  %one = s32[] constant(1)
  %start = (s32[], f32[2]{0}) tuple(%one, %x.1)
  ROOT %loop = (s32[], f32[2]{0}) while(%start), condition=%condition, body=%body
}
"""
    program = Program(text)
    loop = program.entry.by_name["%loop"]
    assert program.trips(loop, where=program.entry) == 4
    assert program.trips(loop) == 4  # from 0: 0, 2, 4, 6


def test_a_loop_without_a_bound_is_refused():
    text = BY_HAND.replace("direction=LT", "direction=NE")
    with pytest.raises(ValueError, match="%loop has no constant bound"):
        costs_of(Program(text))
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("HloModule nothing")


def test_instructions_and_shapes():
    assert parse_shape(
        "(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, /*index=2*/u8[3])"
    ) == (
        Array("bf16", (8, 128), 1),
        Array("f32", ()),
        Array("u8", (3,)),
    )
    line = "  ROOT %a.1 = (f32[2]{0}, u32[]{:S(2)}) copy-start(%b, /*index=1*/%c.2), x={1,2}, y=%d"
    parsed = parse_instruction(line)
    assert (parsed.name, parsed.opcode, parsed.operands) == ("%a.1", "copy-start", ("%b", "%c.2"))
    assert (parsed.attribute("x"), parsed.attribute("y"), parsed.attribute("z")) == (
        "{1,2}",
        "%d",
        None,
    )
    assert parse_instruction("no instruction") is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[8,2]<=[4,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=4] {'axis_0'}", 16),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
    ],
)
def test_group_sizes(text, size):
    assert group_size(f"channel_id=1, {text}, dimensions={{0}}") == size


def test_unknown_groups_are_refused():
    with pytest.raises(ValueError, match="unknown form"):
        group_size("replica_groups=everyone")


def test_wires_of_a_ring():
    def sent(kind):
        return Collective(kind, group=4, operand_bytes=100, times=2, shape="").wire_bytes

    assert sent("all-gather") == 600
    assert sent("all-reduce") == 300
    assert sent("reduce-scatter") == sent("all-to-all") == 150
    assert sent("collective-permute") == 200


def test_padding_and_holes_of_a_convolution_do_not_count():
    def flops(window):
        return costs_of(
            Program(f"""\
ENTRY %main (x: f32[2,4,3], w: f32[3,3,5]) -> f32[2,4,5] {{
  %x = f32[2,4,3]{{2,1,0}} parameter(0)
  %w = f32[3,3,5]{{2,1,0}} parameter(1)
  ROOT %y = f32[2,4,5]{{2,1,0}} convolution(%x, %w), window={{{window}}}, dim_labels=b0f_0io->b0f
}}
""")
        ).flops

    # 4 results of 3 places each, of which the first and the last have one in the padding.
    assert flops("size=3 pad=1_1") == 2 * 2 * 3 * 5 * 10
    # Every second place of the input is a hole: of 12 places 2 + 1 + 2 + 1 meet a number.
    assert flops("size=3 pad=1_1 lhs_dilate=2") == 2 * 2 * 3 * 5 * (1 + 2 + 1 + 2)


def test_a_compiled_scan_has_the_flops_of_its_jaxpr():
    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    x, weights = jnp.zeros((8, 32)), jnp.zeros((6, 32, 32))
    text = jax.jit(jax.grad(lambda w: jnp.sum(layers(x, w)))).lower(weights).compile().as_text()
    expected = flops_of(jax.grad(lambda w: jnp.sum(layers(x, w))), weights)
    assert costs_of(Program(text)).flops == expected


def test_a_compiled_gather_has_its_bytes():
    mesh = make_mesh(data=1, fsdp=8)
    weight = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    whole = jax.jit(lambda w: w * 2, out_shardings=NamedSharding(mesh, P()))
    costs = costs_of(Program(whole.lower(weight).compile().as_text()))
    np.testing.assert_equal(costs.wire_bytes_by_kind(), {"all-gather": 7 * 8 * 32 * 4})
