"""DeepGEMM's compile-and-cache protocol, as its artifacts show it, without a GPU.

G1 is Python (`subprocess`), G2 what versions 2.1 to 2.6 do, G3 DeepJIT (sgl-deep-gemm 0.2.3, vLLM's 2.8.1). Compilers
of G2 and G3 are started by libc's popen, where Python's audit hooks see nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent


def _native(generation: str) -> Callable[[str, str, str], tuple[int, str]]:
    """Return what runs a command and moves its result into place: C, which in G2 holds the GIL all the time."""
    library = (ctypes.PyDLL if generation == "G2" else ctypes.CDLL)(os.environ["FAKE_NATIVE"])
    library.build.argtypes = [*[ctypes.c_char_p] * 4, ctypes.c_size_t]

    def build(command: str, building: str, entry: str) -> tuple[int, str]:
        output = ctypes.create_string_buffer(4096)
        paths = (building.encode(), entry.encode())
        return library.build(f"{command} 2>&1".encode(), *paths, output, len(output)), output.value.decode()

    return build


class Jit:
    """One runtime. It looks at its environment at first use, and never again."""

    def __init__(self, generation: str) -> None:
        self.generation = generation
        self.memory: dict[str, Path] = {}
        self._roots: list[Path] = []
        self._compiler = self._version = self._flags = ""
        self._build = _by_subprocess if generation == "G1" else _native(generation)

    def build(self, family: str, code: str) -> Path:
        """Return the entry of a kernel: from memory, from disk, or compiled."""
        self._start()
        include = f"-I{HERE}/include"
        keyed = f"{self._flags} {include}" if self.generation == "G2" else self._flags
        signature = f"{family}$${self._version}$${keyed}$${code}"
        digest = hashlib.md5(signature.encode()).hexdigest()
        name = f"{family}.{digest}" if self.generation == "G3" else f"kernel.{family}.{digest}"
        if name not in self.memory:
            self.memory[name] = self._on_disk(name) or self._publish(name, code, include)
        return self.memory[name]

    def _start(self) -> None:
        if self._roots:
            return
        home = f"{os.environ['HOME']}/{'.dj' if self.generation == 'G3' else '.deep_gemm'}"
        named = os.environ.get("DG_JIT_CACHE_DIR")
        if self.generation == "G3":
            named = named or os.environ.get("DJ_JIT_CACHE_DIR")
        parts = (named or home).split(":") if self.generation == "G3" else [named or home]
        if not all(parts):
            raise RuntimeError("an empty cache folder")
        own = os.environ.get("DG_JIT_NVCC_COMPILER")
        if self.generation == "G3":
            own = own or os.environ.get("DJ_JIT_NVCC_COMPILER")
        self._compiler = own or _find_nvcc()
        code, output = self._build(f"{self._compiler} --version", "", "")
        release = re.search(r"release (\d+\.\d+)", output)
        if code or release is None:
            raise RuntimeError(f"no compiler: {output}")
        self._version = output if self.generation == "G3" else f"NVCC{release[1]}"
        self._flags = "-std=c++20 -O3" + (" --verbose" if os.environ.get("DG_JIT_DEBUG") else "")
        self._roots = [Path(part) for part in parts]

    def _on_disk(self, name: str) -> Path | None:
        for root in self._roots:
            entry = root / "cache" / name
            if self.generation == "G3" and (entry / ".committed").exists():
                os.utime(entry / ".committed")
                return entry
            if self.generation != "G3" and (entry / "kernel.cubin").exists():
                return entry
        return None

    def _publish(self, name: str, code: str, include: str) -> Path:
        root = self._roots[0]
        parts = (os.urandom(4).hex() for _ in range(3))
        building = root / "tmp" / "-".join([str(os.getpid()), *parts])
        building.mkdir(parents=True)
        (building / "kernel.cu").write_text(code)
        source, binary = building / "kernel.cu", building / "kernel.cubin"
        if self.generation == "G3":
            flags = f"--cubin --output-file {binary} {self._flags} --include-path {HERE}/include"
        else:
            flags = f"-cubin -o {binary} {self._flags} {include}"
        command = f"cd {root / 'tmp'} && {self._compiler} {source} {flags}"
        if self.generation == "G3":
            (building / "meta.json").write_text(json.dumps({"command": command, "compiler": self._version}))
            (building / ".committed").touch()
        entry = root / "cache" / name
        entry.parent.mkdir(exist_ok=True)
        status, output = self._build(command, str(building), str(entry))
        if status:
            shutil.rmtree(building)
        if status > 0:
            raise RuntimeError(f"NVCC compilation failed: {output}")
        return entry


def _by_subprocess(command: str, building: str, entry: str) -> tuple[int, str]:
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if not done.returncode and entry:
        Path(building).rename(entry)
    return done.returncode, done.stdout


def _find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return f"{home}/bin/nvcc" if home else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
