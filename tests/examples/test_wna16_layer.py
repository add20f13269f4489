"""The example layer is correct wherever it can be executed on a CPU, and has the keys it is meant to have."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from examples.wna16_moe import packing
from examples.wna16_moe.kernels import default_block_config, launch_length
from examples.wna16_moe.layer import LayerConfig, WNA16MoE
from examples.wna16_moe.reference import TOLERANCE, dense_weight, reference_output
from examples.wna16_moe.routing import align_to_blocks, route, slot_capacity
from examples.wna16_moe.warmup import COVERING_BATCHES

HERE = Path(__file__).parent
SMALL: dict[str, int] = {"experts": 4, "top_k": 2, "hidden": 96, "intermediate": 64, "group_size": 32}


def random_experts(tokens: int, top_k: int, num_experts: int) -> torch.Tensor:
    scores = torch.rand((tokens, num_experts), generator=torch.Generator().manual_seed(tokens))
    return torch.topk(scores, top_k, dim=1).indices


def random_hidden(tokens: int, width: int) -> torch.Tensor:
    return torch.randn((tokens, width), generator=torch.Generator().manual_seed(tokens)).half()


class TestPacking:
    @pytest.mark.parametrize("dim", [0, 1, 2, -1])
    def test_unpacking_undoes_packing(self, dim: int) -> None:
        values = torch.randint(0, 16, (4, 6, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        packed = packing.pack_nibbles(values, dim)
        assert packed.shape[dim] == values.shape[dim] // 2
        assert torch.equal(packing.unpack_nibbles(packed, dim), values)

    def test_even_positions_are_low_nibbles(self) -> None:
        assert packing.pack_nibbles(torch.tensor([0x1, 0x2, 0xF, 0x8]), dim=0).tolist() == [0x21, 0x8F]

    def test_odd_sizes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="size 3 cannot be packed in pairs"):
            packing.pack_nibbles(torch.zeros(3), dim=0)

    @pytest.mark.parametrize("has_zeros", [False, True])
    def test_dequantized_weight_is_the_dense_one(self, has_zeros: bool) -> None:
        layer = WNA16MoE(LayerConfig(**SMALL, has_zeros=has_zeros), device="cpu")
        for weight in (layer.w13, layer.w2):
            assert (weight.zeros is not None) is has_zeros
            torch.testing.assert_close(packing.dequantize(weight), dense_weight(weight).half(), rtol=0, atol=0)


class TestAlignment:
    @pytest.mark.parametrize("block_size", [16, 32, 64])
    @pytest.mark.parametrize("tokens", [1, 3, 25, 100])
    def test_each_slot_lies_once_in_a_block_of_its_expert(self, tokens: int, block_size: int) -> None:
        experts = random_experts(tokens, top_k=2, num_experts=8)
        blocks = align_to_blocks(experts, 8, block_size)

        used = blocks.slots[: blocks.padded_total.item()]
        assert used.numel() % block_size == 0
        real = used[used < experts.numel()]
        assert sorted(real.tolist()) == list(range(experts.numel()))
        for slot_block, expert in zip(used.view(-1, block_size), blocks.block_experts, strict=False):
            assert {experts.flatten()[slot].item() for slot in slot_block if slot < experts.numel()} == {expert.item()}

    def test_unused_capacity_is_padding(self) -> None:
        experts = torch.zeros((40, 1), dtype=torch.int64)
        blocks = align_to_blocks(experts, 8, 32)
        assert blocks.padded_total.item() == 64
        assert (blocks.slots[40:] == 40).all()

    @pytest.mark.parametrize("tokens", [1, 2, 7, 25, 63, 64])
    def test_launch_length_is_enough_for_any_routing(self, tokens: int) -> None:
        num_experts, top_k, block_size = 8, 2, 64
        capacity = slot_capacity(tokens * top_k, num_experts, block_size)
        same = torch.tensor([[0, 1]]).expand(tokens, top_k)
        for experts in (same, random_experts(tokens, top_k, num_experts)):
            total = align_to_blocks(experts, num_experts, block_size).padded_total.item()
            assert total <= launch_length(tokens, top_k, capacity, block_size)
            assert total <= launch_length(tokens * top_k, 1, capacity, block_size)

    def test_no_real_values_are_needed(self) -> None:
        hidden, router = torch.empty((500, 96), device="meta"), torch.empty((8, 96), device="meta")
        blocks = align_to_blocks(route(hidden, router, 2)[1], 8, 64)
        assert blocks.slots.shape == (1504,)
        assert blocks.slots.is_meta


class TestRouting:
    def test_weights_are_float32_and_sum_to_one(self) -> None:
        weights, experts = route(random_hidden(9, 96), torch.ones((4, 96)), 2)
        assert weights.dtype == torch.float32
        assert experts.shape == (9, 2)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(9))


class TestLayer:
    @pytest.mark.parametrize("has_zeros", [False, True])
    @pytest.mark.parametrize("tokens", [1, 5, 12])
    def test_small_batch_path_agrees_with_reference(self, has_zeros: bool, tokens: int) -> None:
        layer = WNA16MoE(LayerConfig(**SMALL, has_zeros=has_zeros), device="cpu")
        assert layer.config.takes_small_batch_path(tokens)
        hidden = random_hidden(tokens, layer.config.hidden)
        torch.testing.assert_close(layer(hidden).float(), reference_output(layer, hidden), **TOLERANCE)

    def test_kernel_agrees_with_reference(self) -> None:
        path = os.pathsep.join(filter(None, [str(HERE.parent.parent), os.getenv("PYTHONPATH")]))
        run = subprocess.run(
            [sys.executable, HERE / "interpreted_layer.py"],
            env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        assert len(run.stdout.splitlines()) == 5

    @pytest.mark.parametrize(("tokens", "small"), [(1, True), (16, True), (24, True), (25, False), (500, False)])
    def test_dispatch_switches_at_six_slots_per_expert(self, tokens: int, small: bool) -> None:
        assert LayerConfig().takes_small_batch_path(tokens) is small

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"top_k": 9}, "top_k=9 must be between 1 and experts=8"),
            ({"group_size": 48}, "group_size=48 must be one of"),
            ({"hidden": 500}, "group_size=128 must divide self.hidden=500"),
        ],
    )
    def test_impossible_sizes_are_refused(self, sizes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(LayerConfig(), **sizes)


def test_covering_batches_are_the_first_of_each_class() -> None:
    """By arithmetic alone; that Triton's keys follow it is shown where the offline target's tests sweep the layer."""
    config = LayerConfig()
    first: dict[tuple[int, bool, bool], int] = {}
    for tokens in range(1, 1025):
        if config.takes_small_batch_path(tokens):
            continue
        num_slots, block_size = tokens * config.top_k, default_block_config(tokens).m
        capacity = slot_capacity(num_slots, config.experts, block_size)
        lengths = {
            launch_length(tokens, config.top_k, capacity, block_size),
            launch_length(num_slots, 1, capacity, block_size),
        }
        assert len(lengths) == 1, "both GEMMs have the same EM above the switch"
        first.setdefault((block_size, lengths.pop() % 16 == 0, num_slots % 16 == 0), tokens)
    assert tuple(first.values()) == COVERING_BATCHES
