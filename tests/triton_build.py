"""Triton kernels compiled for an H100, on machines without one."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

REGISTERS = 65536
"""Registers of a multiprocessor."""


def build(kernel: Any, types: Mapping[str, str], constants: Mapping[str, object], *, warps: int, contract: bool) -> Any:
    """A kernel as it is built for CUDA of compute capability 9.0.

    Args:
        kernel: the kernel.
        types: type of each argument that is no constant; pointers, and sizes marked by ``16``, are multiples of 16.
        constants: values of the others.
        warps: warps per program.
        contract: whether products and sums may be contracted.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for number, argument in enumerate(kernel.arg_names):
        signature[argument] = types.get(argument, "constexpr").removesuffix(" 16")
        if signature[argument].startswith("*") or types.get(argument, "").endswith(" 16"):
            attributes[(number,)] = [["tt.divisibility", 16]]
    fixed = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
    options = {"num_warps": warps, "enable_fp_fusion": contract}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def resources(built: Any, folder: Path) -> tuple[int, int]:
    """Registers per thread, and bytes of its stack, to which registers are spilled."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("Triton comes without cuobjdump here")
    (folder / "kernel.cubin").write_bytes(built.asm["cubin"])
    done = subprocess.run([tool, "--dump-resource-usage", folder / "kernel.cubin"], capture_output=True, text=True)
    found = dict(re.findall(r"\b(REG|STACK):(\d+)", done.stdout))
    assert set(found) == {"REG", "STACK"}, done
    return int(found["REG"]), int(found["STACK"])


def warps_at_once(registers: int, warps: int) -> int:
    """Warps of a multiprocessor that the registers allow; they are given out by eights."""
    return REGISTERS // (-(-registers // 8) * 8 * 32 * warps) * warps
