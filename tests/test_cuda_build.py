"""csrc/cuda compiles for every GPU we build for, without a register spilled; no GPU needed, only nvcc."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pfengine_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # builds nothing: it is not __main__
    return module


setup = load_setup()
nvcc = setup.find_nvcc()
needs_nvcc = pytest.mark.skipif(nvcc is None, reason="no nvcc in CUDA_HOME, CUDA_PATH, /usr/local/cuda or on the PATH")


@needs_nvcc
@pytest.mark.parametrize("source", setup.CUDA_SOURCES)
def test_compiles_without_spills(source: str, tmp_path: Path) -> None:
    command = [nvcc, *setup.NVCC_FLAGS, "-Xptxas", "-v", "-Werror", "all-warnings", "-c", ROOT / source]
    done = subprocess.run([*command, "-o", tmp_path / "out.o"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    assert spills, done.stderr
    assert set(spills) == {"0"}, done.stderr
    assert set(re.findall(r"for '(sm_\d+)'", done.stderr)) == {"sm_80", "sm_90"}


@needs_nvcc
def test_libraries_are_found() -> None:
    assert any((path / "libcudart_static.a").is_file() for path in setup.cuda_library_dirs(nvcc))


def test_all_cuda_sources_are_built() -> None:
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cu")} == set(setup.CUDA_SOURCES)


def test_all_cpp_sources_are_built() -> None:
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp")}
    assert found == {*setup.CPP_SOURCES, setup.KERNELS}


def make_nvcc(folder: Path, text: str = "#!/bin/sh\n") -> Path:
    nvcc = folder / "nvcc"
    nvcc.parent.mkdir(parents=True, exist_ok=True)
    nvcc.write_text(text)
    nvcc.chmod(0o755)
    return nvcc


def test_the_environment_says_where_nvcc_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, path = make_nvcc(tmp_path / "home" / "bin"), make_nvcc(tmp_path / "path" / "bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "home"))
    assert setup.find_nvcc() == home
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "path"))
    assert setup.find_nvcc() == path


@needs_nvcc
def test_a_wrapper_leads_to_the_toolkit(tmp_path: Path) -> None:
    wrapper = make_nvcc(tmp_path, f'#!/bin/sh\nexec {nvcc} "$@"\n')
    assert any((path / "libcudart_static.a").is_file() for path in setup.cuda_library_dirs(wrapper))
