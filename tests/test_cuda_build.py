"""csrc/cuda as nvcc compiles it. It takes the toolkit, and no GPU."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pfengine.ops import cuda_driver

ROOT = Path(__file__).parent.parent
HOMES = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
NVCC = shutil.which("nvcc", path=os.pathsep.join([*(f"{home}/bin" for home in HOMES if home), os.environ["PATH"]]))
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc in CUDA_HOME, CUDA_PATH, /usr/local/cuda or on the PATH")


def nvcc(*arguments: str | Path) -> str:
    done = subprocess.run([str(NVCC), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@needs_nvcc
def test_the_ptx_is_that_of_the_source(tmp_path: Path) -> None:
    """Except for its version: the first driver that knows conditional nodes must be able to read it."""
    nvcc("-ptx", "-arch=compute_80", "-o", tmp_path / "made.ptx", ROOT / "csrc/cuda/condition.cu")

    def code(text: str) -> list[str]:
        lines = (line.strip() for line in text.splitlines() if not line.lstrip().startswith("//"))
        return [line for line in lines if line and not line.startswith(".version")]

    shipped = cuda_driver.CONDITION.read_text()
    assert code(shipped) == code((tmp_path / "made.ptx").read_text())
    assert re.search(r"^\.version 8\.4$", shipped, re.MULTILINE)


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_ptx_compiles_without_spills(arch: str, tmp_path: Path) -> None:
    told = nvcc("-cubin", f"-arch={arch}", "-Xptxas=-v", "-o", tmp_path / "made.cubin", cuda_driver.CONDITION)
    assert "0 bytes spill stores, 0 bytes spill loads" in told


@pytest.mark.slow
@needs_nvcc
def test_the_loop_is_plain_enough_for_nvcc(tmp_path: Path) -> None:
    source, object_file = ROOT / "csrc/cuda/segment_loop.cpp", tmp_path / "made.o"
    nvcc("-c", "-std=c++17", "-Werror=all-warnings", f"-I{ROOT / 'csrc'}", "-o", object_file, source)


@pytest.mark.slow
@needs_nvcc
def test_structures_are_laid_out_as_in_cuda(tmp_path: Path) -> None:
    names = {cuda_driver.NodeParams: "CUgraphNodeParams", cuda_driver.KernelParams: "CUDA_KERNEL_NODE_PARAMS_v3",
             cuda_driver.ConditionParams: "CUDA_CONDITIONAL_NODE_PARAMS"}  # fmt: skip
    members = {"kind": "type", "shared": "sharedMemBytes", "arguments": "kernelParams", "bodies": "phGraph_out",
               "function": "func", "count": "size", "context": "ctx", "node": "kernel"}  # fmt: skip
    lines, expected = [], []
    for ours, theirs in names.items():
        lines.append(f"sizeof({theirs})")
        expected.append(ctypes.sizeof(ours))
        for name, *_ in ours._fields_:
            if name in ("reserved", "padding", "grid", "block"):
                continue
            lines.append(f"offsetof({theirs}, {members.get(name, name)})")
            expected.append(getattr(ours, name).offset)
    lines += ["offsetof(CUDA_KERNEL_NODE_PARAMS_v3, gridDimX)", "offsetof(CUDA_KERNEL_NODE_PARAMS_v3, blockDimX)"]
    expected += [cuda_driver.KernelParams.grid.offset, cuda_driver.KernelParams.block.offset]
    lines += ["CU_GRAPH_NODE_TYPE_KERNEL", "CU_GRAPH_NODE_TYPE_CONDITIONAL", "CU_GRAPH_COND_TYPE_IF",
              "CU_STREAM_NON_BLOCKING"]  # fmt: skip
    expected += [cuda_driver.KERNEL, cuda_driver.CONDITIONAL, cuda_driver.IF, cuda_driver.NON_BLOCKING]
    body = "".join(f'std::printf("%d\\n", (int)({line}));' for line in lines)
    source = "#include <cuda.h>\n#include <cstddef>\n#include <cstdio>\nint main() {" + body + "}\n"
    (tmp_path / "layout.cpp").write_text(source)
    nvcc("-o", tmp_path / "layout", tmp_path / "layout.cpp")
    found = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout.split()
    assert dict(zip(lines, map(int, found), strict=True)) == dict(zip(lines, expected, strict=True))
