"""The one table of named GPUs: what code asks a device about, so that it takes the path it takes on that device."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True)
class GPU:
    """One GPU as kernels and their launchers see it.

    Sizes are in bytes, clocks in kHz, all as the vendor's runtime (and so `torch.cuda`) reports them.
    """

    name: str
    """How the user names it: `--jitguard-offline=NAME`."""
    backend: str
    """Triton's backend: `cuda` or `hip`, or the name of one that is installed beside Triton."""
    arch: int | str
    """Triton's architecture: 90 for sm_90, `gfx942`."""
    device_name: str
    """What `torch.cuda.get_device_name()` answers on it: tuned configurations are looked up by this."""
    multiprocessors: int
    """SMs (NVIDIA) or compute units (AMD) that one device shows."""
    total_memory: int
    max_shared_mem: int
    """Shared memory (LDS) that one block may opt in to; a kernel that needs more raises OutOfResources."""
    l2_cache: int
    clock_khz: int
    memory_clock_khz: int
    memory_bus_bits: int
    shared_mem_per_multiprocessor: int
    warp_size: int = 32
    max_threads_per_block: int = 1024
    max_threads_per_multiprocessor: int = 2048
    registers: int = 65536
    """32-bit registers that one block may use."""
    source: str = ""
    """Where the figures come from."""

    @property
    def target(self) -> str:
        """`backend:arch`, for example `cuda:90`."""
        return f"{self.backend}:{self.arch}"

    @property
    def capability(self) -> tuple[int, int]:
        """What `torch.cuda.get_device_capability()` answers: (9, 0) for sm_90, (9, 4) for gfx942."""
        if isinstance(self.arch, int):
            return divmod(self.arch, 10)
        digits = self.arch.removeprefix("gfx")
        # gfx90a: the last two digits are hexadecimal minor and stepping, ROCm reports major 9, minor 0.
        return (int(digits[:-2]), int(digits[-2], 16)) if digits[:-2].isdigit() else (0, 0)


_CUDA_GUIDE = "CUDA C++ Programming Guide, Technical Specifications per Compute Capability"
_ROCM_SPECS = "ROCm documentation, Accelerator and GPU hardware specifications"


def _cuda(
    name: str,
    arch: int,
    device_name: str,
    *,
    sms: int,
    memory_mib: int,
    l2_mib: int,
    clock_mhz: int,
    memory_mhz: int,
    bus: int,
    source: str,
) -> GPU:
    block, multiprocessor, threads = _NVIDIA_LIMITS[arch]
    return GPU(
        name=name,
        backend="cuda",
        arch=arch,
        device_name=device_name,
        multiprocessors=sms,
        total_memory=memory_mib * MIB,
        max_shared_mem=block * KIB,
        shared_mem_per_multiprocessor=multiprocessor * KIB,
        max_threads_per_multiprocessor=threads,
        l2_cache=l2_mib * MIB,
        clock_khz=clock_mhz * 1000,
        memory_clock_khz=memory_mhz * 1000,
        memory_bus_bits=bus,
        source=f"{source}; {_CUDA_GUIDE}",
    )


def _hip(
    name: str,
    arch: str,
    device_name: str,
    *,
    cus: int,
    memory_mib: int,
    l2_mib: int,
    clock_mhz: int,
    memory_mhz: int,
    bus: int,
    lds_kib: int = 64,
    warp_size: int = 64,
    source: str = _ROCM_SPECS,
) -> GPU:
    return GPU(
        name=name,
        backend="hip",
        arch=arch,
        device_name=device_name,
        multiprocessors=cus,
        total_memory=memory_mib * MIB,
        max_shared_mem=lds_kib * KIB,
        shared_mem_per_multiprocessor=lds_kib * KIB,
        warp_size=warp_size,
        l2_cache=l2_mib * MIB,
        clock_khz=clock_mhz * 1000,
        memory_clock_khz=memory_mhz * 1000,
        memory_bus_bits=bus,
        source=source,
    )


# arch: (KiB of shared memory per block by opt-in, KiB per SM, resident threads per SM)
_NVIDIA_LIMITS: Mapping[int, tuple[int, int, int]] = MappingProxyType(
    {
        75: (64, 64, 1024),
        80: (163, 164, 2048),
        86: (99, 100, 1536),
        87: (163, 164, 1536),
        89: (99, 100, 1536),
        90: (227, 228, 2048),
        100: (227, 228, 2048),
        103: (227, 228, 2048),
        110: (227, 228, 1536),
        120: (99, 100, 1536),
        121: (99, 100, 1536),
    }
)

# fmt: off
_ROWS = (
    _cuda("t4", 75, "Tesla T4", sms=40, memory_mib=15102, l2_mib=4, clock_mhz=1590, memory_mhz=5001, bus=256,
          source="NVIDIA T4 datasheet; NVIDIA Turing architecture whitepaper"),
    _cuda("a100", 80, "NVIDIA A100-SXM4-80GB", sms=108, memory_mib=81153, l2_mib=40, clock_mhz=1410, memory_mhz=1593,
          bus=5120, source="NVIDIA A100 datasheet; NVIDIA Ampere architecture whitepaper"),
    _cuda("a100-40gb", 80, "NVIDIA A100-SXM4-40GB", sms=108, memory_mib=40441, l2_mib=40, clock_mhz=1410,
          memory_mhz=1215, bus=5120, source="NVIDIA A100 datasheet; NVIDIA Ampere architecture whitepaper"),
    _cuda("a10g", 86, "NVIDIA A10G", sms=80, memory_mib=22723, l2_mib=6, clock_mhz=1710, memory_mhz=6251, bus=384,
          source="AWS EC2 G5 documentation"),
    _cuda("rtx3090", 86, "NVIDIA GeForce RTX 3090", sms=82, memory_mib=24238, l2_mib=6, clock_mhz=1695,
          memory_mhz=9751, bus=384, source="NVIDIA Ampere GA102 architecture whitepaper"),
    _cuda("l4", 89, "NVIDIA L4", sms=58, memory_mib=22574, l2_mib=48, clock_mhz=2040, memory_mhz=6251, bus=192,
          source="NVIDIA L4 datasheet"),
    _cuda("l40s", 89, "NVIDIA L40S", sms=142, memory_mib=45373, l2_mib=96, clock_mhz=2520, memory_mhz=9001, bus=384,
          source="NVIDIA L40S datasheet"),
    _cuda("rtx4090", 89, "NVIDIA GeForce RTX 4090", sms=128, memory_mib=24217, l2_mib=72, clock_mhz=2520,
          memory_mhz=10501, bus=384, source="NVIDIA Ada GPU architecture whitepaper"),
    _cuda("h100", 90, "NVIDIA H100 80GB HBM3", sms=132, memory_mib=81079, l2_mib=50, clock_mhz=1980, memory_mhz=2619,
          bus=5120, source="NVIDIA H100 datasheet (SXM5); NVIDIA Hopper architecture whitepaper"),
    _cuda("h100-pcie", 90, "NVIDIA H100 PCIe", sms=114, memory_mib=81081, l2_mib=50, clock_mhz=1755, memory_mhz=1593,
          bus=5120, source="NVIDIA H100 datasheet (PCIe); NVIDIA Hopper architecture whitepaper"),
    _cuda("h20", 90, "NVIDIA H20", sms=78, memory_mib=97285, l2_mib=60, clock_mhz=1980, memory_mhz=2619, bus=6144,
          source="torch.cuda.get_device_properties on an H20, as published by its users"),
    _cuda("h200", 90, "NVIDIA H200", sms=132, memory_mib=143156, l2_mib=60, clock_mhz=1980, memory_mhz=3201, bus=6144,
          source="NVIDIA H200 datasheet; torch.cuda.get_device_properties on an H200, as published by its users"),
    _cuda("gh200", 90, "NVIDIA GH200 480GB", sms=132, memory_mib=96768, l2_mib=60, clock_mhz=1980, memory_mhz=2619,
          bus=6144, source="NVIDIA GH200 datasheet (96 GB HBM3)"),
    _cuda("b200", 100, "NVIDIA B200", sms=148, memory_mib=182642, l2_mib=126, clock_mhz=1965, memory_mhz=3996,
          bus=7680, source="NVIDIA HGX B200 datasheet; torch.cuda.get_device_properties on a B200, as published"),
    _cuda("b300", 103, "NVIDIA B300 SXM6 AC", sms=148, memory_mib=275040, l2_mib=126, clock_mhz=2032, memory_mhz=3996,
          bus=7680, source="NVIDIA HGX B300 datasheet; device name as in SGLang's tuned configurations"),
    _cuda("rtx5090", 120, "NVIDIA GeForce RTX 5090", sms=170, memory_mib=32109, l2_mib=96, clock_mhz=2407,
          memory_mhz=14001, bus=512, source="NVIDIA RTX Blackwell GPU architecture whitepaper"),
    _hip("mi250x", "gfx90a", "AMD Instinct MI250X", cus=110, memory_mib=65520, l2_mib=8, clock_mhz=1700,
         memory_mhz=1600, bus=4096, source=f"{_ROCM_SPECS} (one of the two dies)"),
    _hip("mi300x", "gfx942", "AMD Instinct MI300X", cus=304, memory_mib=196592, l2_mib=4, clock_mhz=2100,
         memory_mhz=1300, bus=8192),
    _hip("mi325x", "gfx942", "AMD Instinct MI325X", cus=304, memory_mib=262128, l2_mib=4, clock_mhz=2100,
         memory_mhz=1500, bus=8192),
    _hip("mi355x", "gfx950", "AMD Instinct MI355X", cus=256, memory_mib=294896, l2_mib=4, clock_mhz=2400,
         memory_mhz=2000, bus=8192, lds_kib=160),
    _hip("rx7900xtx", "gfx1100", "AMD Radeon RX 7900 XTX", cus=48, memory_mib=24560, l2_mib=6, clock_mhz=2304,
         memory_mhz=1249, bus=384, warp_size=32, source=f"{_ROCM_SPECS} (ROCm counts its 48 work-group processors)"),
)
# fmt: on

GPUS: Mapping[str, GPU] = MappingProxyType({row.name: row for row in _ROWS})
"""Every named GPU."""

DEFAULT_GPUS: Mapping[str, str] = MappingProxyType(
    {
        "cuda:75": "t4",
        "cuda:80": "a100",
        "cuda:86": "a10g",
        "cuda:89": "l40s",
        "cuda:90": "h100",
        "cuda:100": "b200",
        "cuda:103": "b300",
        "cuda:120": "rtx5090",
        "hip:gfx90a": "mi250x",
        "hip:gfx942": "mi300x",
        "hip:gfx950": "mi355x",
        "hip:gfx1100": "rx7900xtx",
    }
)
"""Which GPU stands for an architecture when only that is named."""


def generic_gpu(backend: str, arch: int | str) -> GPU:
    """Return a modest, made-up GPU of an architecture that the table does not know."""
    block, multiprocessor, threads = _NVIDIA_LIMITS.get(arch if isinstance(arch, int) else 0, (64, 64, 1024))
    return GPU(
        name=f"{backend}:{arch}",
        backend=backend,
        arch=arch,
        device_name=f"Generic {backend} {arch}",
        multiprocessors=64,
        total_memory=32 * GIB,
        max_shared_mem=block * KIB,
        shared_mem_per_multiprocessor=multiprocessor * KIB,
        max_threads_per_multiprocessor=threads,
        warp_size=_generic_warp_size(backend, arch),
        l2_cache=32 * MIB,
        clock_khz=2_000_000,
        memory_clock_khz=2_000_000,
        memory_bus_bits=512,
        source="made up: no named GPU has this architecture",
    )


def _generic_warp_size(backend: str, arch: int | str) -> int:
    # CDNA (gfx9) has wavefronts of 64, RDNA and gfx12 of 32.
    return 64 if backend == "hip" and str(arch).startswith("gfx9") else 32
