"""The Triton kernel of the layer, and its launch."""

# An annotation on a kernel's parameter is an instruction to Triton, so the kernel has none for Python's types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from examples.wna16_moe.packing import PackedWeight
from examples.wna16_moe.routing import ExpertBlocks


@triton.jit
def wna16_moe_gemm(
    a_ptr,
    b_ptr,
    c_ptr,
    scale_ptr,
    zero_ptr,  # None, and thereby a constant, where has_zp is False
    routed_weight_ptr,
    sorted_slot_ptr,
    block_expert_ptr,
    padded_total_ptr,
    EM,
    num_valid_tokens,
    stride_am,
    stride_ak,
    stride_be,
    stride_bn,
    stride_bk,
    stride_cm,
    stride_cn,
    stride_se,
    stride_sn,
    stride_sk,
    stride_ze,
    stride_zn,
    stride_zk,
    N: tl.constexpr,
    K: tl.constexpr,
    group_size: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    GROUP_SIZE_M: tl.constexpr,
    MUL_ROUTED_WEIGHT: tl.constexpr,
    top_k: tl.constexpr,
    has_zp: tl.constexpr,
):
    """c[slot] = a[slot // top_k] @ dequantized(b[expert of the slot's block]).T, optionally times the slot's weight."""
    tl.static_assert(K % BLOCK_SIZE_K == 0, "the K loop has no mask")
    tl.static_assert(group_size % BLOCK_SIZE_K == 0, "a tile lies in one group, so it needs one row of scales")

    # Neighbouring programs share rows of A for GROUP_SIZE_M blocks of M, which keeps them in the L2 cache.
    pid = tl.program_id(0)
    num_pid_m = tl.cdiv(EM, BLOCK_SIZE_M)
    num_pid_n = tl.cdiv(N, BLOCK_SIZE_N)
    pids_per_group = GROUP_SIZE_M * num_pid_n
    first_pid_m = pid // pids_per_group * GROUP_SIZE_M
    group_height = tl.minimum(num_pid_m - first_pid_m, GROUP_SIZE_M)
    pid_m = first_pid_m + pid % pids_per_group % group_height
    pid_n = pid % pids_per_group // group_height

    # EM is the host's worst case; what the routing really filled is known here only. It is whole blocks and never
    # more than the buffer, so that the loads below need no mask.
    if pid_m * BLOCK_SIZE_M >= tl.load(padded_total_ptr):
        return

    # 64 bits: slot * stride and expert * stride leave 32 bits at sizes that are served.
    slots = tl.load(sorted_slot_ptr + pid_m * BLOCK_SIZE_M + tl.arange(0, BLOCK_SIZE_M)).to(tl.int64)
    slot_mask = slots < num_valid_tokens
    expert = tl.load(block_expert_ptr + pid_m).to(tl.int64)

    n = pid_n * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N)
    n_mask = n < N
    k = tl.arange(0, BLOCK_SIZE_K)
    nibble_shift = (k % 2 * 4)[:, None]
    a_ptrs = a_ptr + (slots // top_k)[:, None] * stride_am + k[None, :] * stride_ak
    b_ptrs = b_ptr + expert * stride_be + n[None, :] * stride_bn + (k // 2)[:, None] * stride_bk
    scale_ptrs = scale_ptr + expert * stride_se + n * stride_sn

    accumulator = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), dtype=tl.float32)
    for k_start in range(0, K, BLOCK_SIZE_K):
        group = k_start // group_size
        a = tl.load(a_ptrs, mask=slot_mask[:, None], other=0.0)
        packed = tl.load(b_ptrs, mask=n_mask[None, :], other=0)
        scale = tl.load(scale_ptrs + group * stride_sk, mask=n_mask, other=0.0).to(tl.float32)
        quantized = (packed.to(tl.int32) >> nibble_shift) & 0xF
        if has_zp:
            zero_ptrs = zero_ptr + expert * stride_ze + n // 2 * stride_zn + group * stride_zk
            zero = (tl.load(zero_ptrs, mask=n_mask, other=0).to(tl.int32) >> (n % 2 * 4)) & 0xF
            centred = quantized - zero[None, :]
        else:
            centred = quantized - 8
        b = (centred.to(tl.float32) * scale[None, :]).to(a.dtype)
        accumulator = tl.dot(a, b, acc=accumulator)
        a_ptrs += BLOCK_SIZE_K * stride_ak
        b_ptrs += BLOCK_SIZE_K // 2 * stride_bk

    if MUL_ROUTED_WEIGHT:
        routed_weight = tl.load(routed_weight_ptr + slots, mask=slot_mask, other=0.0)
        accumulator *= routed_weight[:, None]
    c_ptrs = c_ptr + slots[:, None] * stride_cm + n[None, :] * stride_cn
    tl.store(c_ptrs, accumulator.to(c_ptr.dtype.element_ty), mask=slot_mask[:, None] & n_mask[None, :])


# The same source, whose key no longer depends on the two scalars that follow the number of tokens. The price: the
# compiler may no longer assume that they are multiples of 16, or 1.
wna16_moe_gemm_unspecialized = triton.jit(wna16_moe_gemm.fn, do_not_specialize=["EM", "num_valid_tokens"])


@dataclass(frozen=True)
class BlockConfig:
    """Tile sizes of one launch, all of them part of the kernel's key."""

    m: int
    n: int = 64
    k: int = 32
    group_m: int = 1


def default_block_config(tokens: int) -> BlockConfig:
    """Pick the tile for a batch: the fewer tokens, the fewer rows, since padding is work for nothing."""
    if tokens <= 20:
        return BlockConfig(m=16)
    return BlockConfig(m=32) if tokens <= 40 else BlockConfig(m=64)


def launch_length(rows: int, top_k: int, capacity: int, block_size: int) -> int:
    """EM: how many slots a launch must allow for.

    A token chooses an expert once at most. So fewer rows than a block has fill at most one block of each expert, and
    there are at most as many blocks as slots.
    """
    return min(capacity, rows * top_k * block_size) if rows < block_size else capacity


def moe_gemm(
    a: torch.Tensor,
    weight: PackedWeight,
    blocks: ExpertBlocks,
    routed_weights: torch.Tensor,
    config: BlockConfig,
    *,
    top_k: int,
    multiply_by_weight: bool,
    specialize_token_scalars: bool = True,
) -> torch.Tensor:
    """Multiply each slot's row of `a` by its expert's weight: [slots, N], with `a.shape[0] * top_k` slots."""
    num_slots = a.shape[0] * top_k
    _, outputs, inputs = weight.shape
    c = torch.empty((num_slots, outputs), dtype=a.dtype, device=a.device)
    em = launch_length(a.shape[0], top_k, blocks.slots.shape[0], config.m)
    kernel = wna16_moe_gemm if specialize_token_scalars else wna16_moe_gemm_unspecialized
    kernel[(triton.cdiv(em, config.m) * triton.cdiv(outputs, config.n),)](
        a,
        weight.packed,
        c,
        weight.scales,
        weight.zeros,
        routed_weights,
        blocks.slots,
        blocks.block_experts,
        blocks.padded_total,
        em,
        num_slots,
        *a.stride(),
        *weight.packed.stride(),
        *c.stride(),
        *weight.scales.stride(),
        *((0, 0, 0) if weight.zeros is None else weight.zeros.stride()),
        N=outputs,
        K=inputs,
        group_size=weight.group_size,
        BLOCK_SIZE_M=config.m,
        BLOCK_SIZE_N=config.n,
        BLOCK_SIZE_K=config.k,
        GROUP_SIZE_M=config.group_m,
        MUL_ROUTED_WEIGHT=multiply_by_weight,
        top_k=top_k,
        has_zp=weight.zeros is not None,
    )
    return c
