"""CMakeLists.txt builds csrc/cuda for every GPU we support, without spilling a register; it takes nvcc and no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parent.parent
HOMES = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
NVCC = shutil.which("nvcc", path=os.pathsep.join([*(f"{home}/bin" for home in HOMES if home), os.environ["PATH"]]))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None, reason="no nvcc in CUDA_HOME, CUDA_PATH, /usr/local/cuda or on the PATH"),
]


def cmake(folder: Path, *arguments: str | Path, **environment: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [shutil.which("cmake", path=path) or "cmake", *arguments]
    environment = {**os.environ, "PATH": path, **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def configure(folder: Path, *options: str, **environment: str) -> None:
    python = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    cmake(folder, "-G", "Ninja", "-S", ROOT, "-B", folder, *python, "-DPFENGINE_CUDA=ON", *options, **environment)


def test_compiles_without_spills(tmp_path: Path) -> None:
    configure(tmp_path, "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v -Werror=all-warnings")
    told = cmake(tmp_path, "--build", ".", "--target", "cuda", "--verbose")
    sources = {path.name for path in (ROOT / "csrc").rglob("*.cu")}
    assert set(re.findall(r"(\w+\.cu)\.o\b", told)) == sources
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", told)
    assert spills, told
    assert set(spills) == {"0"}, told
    assert set(re.findall(r"for '(sm_\d+)'", told)) == {"sm_80", "sm_90"}
    assert "compute_90,sm_90" in told or "sm_90,compute_90" in told  # PTX, for what comes after
    assert "cudart_static" in (tmp_path / "build.ninja").read_text()


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_the_environment_says_where_nvcc_is(variable: str, tmp_path: Path) -> None:
    """A mere wrapper there leads to the toolkit, too."""
    wrapper = tmp_path / "cuda" / "bin" / "nvcc"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(f'#!/bin/sh\nexec {NVCC} "$@"\n')
    wrapper.chmod(0o755)
    environment = {"CUDA_HOME": str(tmp_path / "nowhere"), variable: str(tmp_path / "cuda")}
    configure(tmp_path, **environment)
    assert str(wrapper) in (tmp_path / "CMakeFiles" / "rules.ninja").read_text()
    assert "cudart_static" in (tmp_path / "build.ninja").read_text()
