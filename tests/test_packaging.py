"""What is installed is what was tested: sdist, wheels, the command, and every PFENGINE_EXT."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED = ("csrc", "kernels", "pfengine", "pyproject.toml", "setup.py", "CMakeLists.txt", "MANIFEST.in")
NEEDED += ("LICENSE", "README.md", "Makefile")
LIBRARY = sysconfig.get_config_var("EXT_SUFFIX")
HAS_COMPILER = any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++")))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")
NO_COMPILER = {"CC": "/nowhere/cc", "CXX": "/nowhere/c++", "PATH": "/nowhere"}
BACKEND = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources: a build leaves nothing in the repository."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("_C*.so", "_C*.pyd", "__pycache__")
            shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture
def quick_compiler(tmp_path: Path) -> str:
    """The C++ compiler without optimisation, in a third of the time: what it makes hardly runs."""
    compiler = tmp_path / "c++"
    chosen = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    compiler.write_text(f'#!/bin/sh\nexec {chosen} "$@" -O0\n')
    compiler.chmod(0o755)
    return str(compiler)


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Without what the test's own environment would lend to the new one."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PFENGINE_EXT")}
    return subprocess.run(command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True)


def run_ok(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    done = run(command, cwd, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """kind: wheel | editable | sdist, by the setuptools that is installed here, without isolation; into tree/dist."""
    (tree / "dist").mkdir(exist_ok=True)
    return run([sys.executable, "-c", BACKEND, f"build_{kind}", "dist"], tree, **environment)


def the_only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def install(wheel: Path, folder: Path) -> Path:
    """A fresh environment with the wheel in it, and its dependencies lent from this one: nothing heavy is fetched."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    # before the loan: pip would find this environment's pfengine and install nothing
    run_ok([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel], folder)
    site = Path(run_ok([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.slow
def test_sdist_and_wheel_install_and_run(tree: Path, tmp_path: Path, quick_compiler: str) -> None:
    run_ok([sys.executable, "-m", "build"], tree, CXX=quick_compiler)  # isolated; the wheel is built from the sdist

    with tarfile.open(the_only(tree / "dist", "*.tar.gz")) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    sources = {str(path.relative_to(tree)) for path in (tree / "csrc").rglob("*") if path.is_file()}
    kernels = {f"pfengine/kernels/{path.name}" for path in (tree / "kernels").glob("*.py")}
    folders = (tree / "pfengine" / "checkpoints", tree / "pfengine" / "serving" / "page")
    data = {str(path.relative_to(tree)) for folder in folders for path in folder.rglob("*") if path.is_file()}
    modules = {str(path.relative_to(tree)) for path in (tree / "pfengine").rglob("*.py")}
    assert packed >= {"LICENSE", "pyproject.toml", "setup.py", "CMakeLists.txt"} | sources | kernels | data | modules
    assert not any(name.endswith((".so", ".pyc")) for name in packed)

    wheel = the_only(tree / "dist", "*.whl")
    with zipfile.ZipFile(wheel) as archive:
        contents = set(archive.namelist())
    assert contents >= kernels | data | modules | {"pfengine/py.typed", "pfengine/_C.pyi"}
    assert {name.partition("/")[0].partition("-")[0] for name in contents} == {"pfengine"}  # no top-level `kernels`
    assert (f"pfengine/_C{LIBRARY}" in contents) == HAS_COMPILER  # `auto` builds it where it can

    python = install(wheel, tmp_path / "env")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run_ok([python, "-c", "import pfengine; print(pfengine.__file__)"], elsewhere)
    assert Path(where.strip()).is_relative_to(tmp_path / "env")
    status = run_ok([python, "-c", "import pfengine.extension as e; print(e.status())"], elsewhere)
    assert ("no pfengine._C" not in status) == HAS_COMPILER
    # one text: what is compiled without optimisation takes minutes for the demo
    answer = run_ok([python.with_name("pfengine"), "classify", "sst2", "a charming journey", "--json"], elsewhere)
    assert json.loads(answer)["label"] == "positive"


@pytest.mark.slow
def test_a_wheel_without_the_extension_works(tree: Path, tmp_path: Path) -> None:
    done = build("wheel", tree, PFENGINE_EXT="0")
    assert done.returncode == 0, done.stderr
    python = install(the_only(tree / "dist", "*-py3-none-any.whl"), tmp_path / "env")
    assert "no pfengine._C" in run_ok([python, "-c", "import pfengine.extension as e; print(e.status())"], tmp_path)
    done = run([python.with_name("pfengine"), "demo"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pfengine._C is missing" in done.stderr  # told, once
    assert done.stderr.count("pfengine._C is missing") == 1


@pytest.mark.slow
@needs_compiler
def test_only_what_has_changed_is_compiled(tree: Path, quick_compiler: str) -> None:
    def setup(command: str, choice: str = "cpu", **environment: str) -> subprocess.CompletedProcess[str]:
        options = {"PFENGINE_EXT": choice, "CXX": quick_compiler} | environment
        return build("editable", tree, **options) if command == "install" else run(again, tree, **options)

    def compiled(done: subprocess.CompletedProcess[str]) -> list[str]:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "was built" in done.stdout
        assert library.is_file()
        return re.findall(r"Building CXX object \S+\.dir/csrc/(\S+)\.o\n", done.stdout)

    library = tree / f"pfengine/_C{LIBRARY}"
    again = [sys.executable, "setup.py", "build_ext", "--inplace"]  # what `make ext` runs
    sources = [str(path.relative_to(tree / "csrc")) for path in (tree / "csrc").rglob("*.cpp")]
    assert set(compiled(setup("install"))) == set(sources)
    assert compiled(setup("again")) == []

    changed = tree / "csrc/cpu/compact.cpp"
    text = changed.read_text()
    changed.write_text(text + "// changed\n")
    assert compiled(setup("again")) == ["cpu/compact.cpp"]
    (tree / "csrc/cpu/another.cpp").write_text("namespace pfengine::cpu {}\n")
    assert compiled(setup("again")) == ["cpu/another.cpp"]

    # `auto` without a compiler leaves nothing of what was built before
    done = setup("again", "auto", **NO_COMPILER)
    assert done.returncode == 0, done.stderr
    assert "pfengine._C was not built" in done.stderr
    assert not library.exists()

    # a mistake in csrc is an error for those who build by hand, and no reason to settle for less
    changed.write_text(text + "#error a mistake\n")
    done = setup("again", "auto")
    assert done.returncode != 0
    assert "a mistake" in done.stdout
    assert "csrc does not compile" in done.stderr
    assert not library.exists()


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="manylinux wheels are for Linux")
def test_a_manylinux_wheel_classifies_where_no_compiler_is(tree: Path, tmp_path: Path, quick_compiler: str) -> None:
    pytest.importorskip("auditwheel")
    run_ok(["make", "wheel", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.dev"], tree, CXX=quick_compiler)
    wheel = the_only(tree / "dist", "*.whl")
    assert re.search(r"-manylinux_2_\d+_\w+\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read(f"pfengine/_C{LIBRARY}")
    if platform.machine() == "x86_64":
        assert all(f"{name}\0".encode() in library for name in ("plain", "avx2", "avx512", "avx512_bf16"))

    python = install(wheel, tmp_path / "env")
    where = run_ok([python, "-c", "from pfengine import _C; print(_C.__file__)"], tmp_path, **NO_COMPILER)
    assert Path(where.strip()).is_relative_to(tmp_path / "env")
    command = [python.with_name("pfengine"), "classify", "sst2", "a charming journey", "--json"]
    done = run(command, tmp_path, **NO_COMPILER)
    assert done.returncode == 0, done.stderr
    assert "pfengine._C is missing" not in done.stderr
    assert json.loads(done.stdout)["label"] == "positive"


@pytest.mark.slow
def test_an_old_library_goes(tree: Path) -> None:
    """An editable install without the extension must not go on with an earlier one."""
    old = tree / f"pfengine/_C{LIBRARY}"
    old.write_bytes(b"")
    done = build("wheel", tree, PFENGINE_EXT="0")
    assert done.returncode == 0, done.stderr
    assert old.exists(), "a wheel is none of the source tree's business"
    with zipfile.ZipFile(the_only(tree / "dist", "*.whl")) as archive:
        assert not any(name.endswith(LIBRARY) for name in archive.namelist())
    done = build("editable", tree, PFENGINE_EXT="0")
    assert done.returncode == 0, done.stderr
    assert not old.exists()
    assert (tree / "pfengine/_C.pyi").exists()


@pytest.mark.parametrize("kind", [pytest.param("wheel", marks=pytest.mark.slow), "editable"])
def test_auto_needs_no_compiler(tree: Path, kind: str) -> None:
    done = build(kind, tree, PFENGINE_EXT="auto", **NO_COMPILER)
    assert done.returncode == 0, done.stderr
    assert "pfengine._C was not built: pfengine will run on torch alone" in done.stderr
    with zipfile.ZipFile(the_only(tree / "dist", "*.whl")) as archive:
        assert not any(name.endswith(LIBRARY) for name in archive.namelist())


def test_an_explicit_choice_that_cannot_be_met_is_an_error(tree: Path) -> None:
    done = build("wheel", tree, PFENGINE_EXT="cpu", **NO_COMPILER)
    assert done.returncode != 0
    assert "PFENGINE_EXT=cpu: pfengine._C could not be built" in done.stderr


def test_an_unknown_choice_is_refused(tree: Path) -> None:
    done = build("wheel", tree, PFENGINE_EXT="yes")
    assert done.returncode != 0
    assert "PFENGINE_EXT is 'yes', expected one of auto, cpu, 0" in done.stderr
