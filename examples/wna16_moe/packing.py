"""Packed int4 weights: two values per byte, scales per group of inputs, optional zero points.

Layouts (N outputs, K inputs, g inputs per group; every tensor has a leading expert dimension E):

=============  ===============  =====================================================================
``packed``     uint8 [E,N,K/2]  byte j holds input 2j in its low nibble, input 2j+1 in its high nibble
``scales``     half  [E,N,K/g]  one per output and group
``zeros``      uint8 [E,N/2,K/g]  packed along N: even outputs in the low nibble; None means 8 for all
=============  ===============  =====================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

IMPLICIT_ZERO = 8  # symmetric int4: 0..15 stands for -8..7


@dataclass(frozen=True)
class PackedWeight:
    """The int4 weight of one linear layer per expert (see the module's table of layouts)."""

    packed: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    group_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, outputs, inputs: the shape of the weight before packing."""
        experts, outputs, half_inputs = self.packed.shape
        return experts, outputs, 2 * half_inputs


def pack_nibbles(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Pack integers 0..15 in pairs along `dim`: even positions into the low nibble, odd ones into the high nibble."""
    if values.shape[dim] % 2:
        raise ValueError(f"dimension {dim} of size {values.shape[dim]} cannot be packed in pairs")
    low, high = values.to(torch.uint8).unflatten(dim, (-1, 2)).unbind(dim % values.dim() + 1)
    return low | (high << 4)


def unpack_nibbles(packed: torch.Tensor, dim: int) -> torch.Tensor:
    """Undo `pack_nibbles`."""
    dim %= packed.dim()
    return torch.stack((packed & 0xF, packed >> 4), dim=dim + 1).flatten(dim, dim + 1)


def random_weight(
    experts: int,
    outputs: int,
    inputs: int,
    *,
    group_size: int,
    has_zeros: bool,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> PackedWeight:
    """Make a weight of standard deviation near 1/sqrt(inputs), so that activations keep their size from layer to layer.

    Drawn on the host, as a checkpoint would be read there: the same seed gives the same weight on any device.
    """
    groups = inputs // group_size
    values = torch.randint(0, 16, (experts, outputs, inputs), generator=generator)
    spread = torch.rand((experts, outputs, groups), generator=generator) + 0.5
    scales = spread / (4.6 * inputs**0.5)  # 4.6: standard deviation of a uniform draw from 0..15
    zeros = torch.randint(6, 11, (experts, outputs, groups), generator=generator) if has_zeros else None
    return PackedWeight(
        packed=pack_nibbles(values, dim=2),
        scales=scales.to(dtype),
        zeros=None if zeros is None else pack_nibbles(zeros, dim=1),
        group_size=group_size,
    )


def to_device(weight: PackedWeight, device: torch.device | str) -> PackedWeight:
    """Copy a weight to a device."""
    return PackedWeight(
        packed=weight.packed.to(device),
        scales=weight.scales.to(device),
        zeros=None if weight.zeros is None else weight.zeros.to(device),
        group_size=weight.group_size,
    )


def dequantize(weight: PackedWeight) -> torch.Tensor:
    """Unpack a weight to [E,N,K] in the dtype of its scales: (value - zero) * scale, multiplied in float32."""
    groups = unpack_nibbles(weight.packed, dim=2).unflatten(2, (-1, weight.group_size)).float()
    zeros = IMPLICIT_ZERO if weight.zeros is None else unpack_nibbles(weight.zeros, dim=1).unsqueeze(3).float()
    return ((groups - zeros) * weight.scales.unsqueeze(3).float()).flatten(2).to(weight.scales.dtype)
