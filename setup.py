"""Builds pfengine._C as PFENGINE_EXT says: auto (default: where it can be) | cpu (or fail) | 0 (not at all).

CMake and ninja build it in build/ and compile only what has changed; CMakeLists.txt says what it is made of.
PFENGINE_SANITIZE: the compiler's sanitizers to build it with, such as "address,undefined"; see `make sanitize`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
MODE = os.environ.get("PFENGINE_EXT", "auto")
MODES = ("auto", "cpu", "0")
# Another value of one of these gets another folder: CMake keeps what it once read, and objects of two kinds do not mix
KEPT = ("CXX", "CXXFLAGS", "LDFLAGS", "PFENGINE_SANITIZE")


class BuildExtension(build_ext):
    """Only `auto` goes on without the library, and says so."""

    def run(self) -> None:
        self.by_hand = self.inplace and not self.editable_mode  # `setup.py build_ext --inplace`, as `make ext` calls it
        remove_built(Path(self.build_lib))
        if self.inplace:
            remove_built(ROOT)
        super().run()

    def build_extension(self, extension: Extension) -> None:
        try:
            build_library(Path(self.get_ext_fullpath(extension.name)))
        except (OSError, subprocess.CalledProcessError) as error:
            reason = error if isinstance(error, OSError) else "the reason is above"
            print(f"pfengine._C could not be built: {reason}", file=sys.stderr)
            if self.by_hand and "--build" in getattr(error, "cmd", ()):
                sys.exit("csrc does not compile with what CMake found; the reason is above")  # whatever MODE is
        else:
            print("pfengine._C was built")
            return
        if MODE != "auto":
            raise CompileError(f"PFENGINE_EXT={MODE}: pfengine._C could not be built; the reason is above")
        print("pfengine._C was not built: pfengine will run on torch alone", file=sys.stderr)


class BuildPython(build_py):
    def run(self) -> None:
        if MODE == "0":  # build_ext does not run then
            remove_built(ROOT if self.editable_mode else Path(self.build_lib))
        super().run()


def remove_built(root: Path) -> None:
    """No build goes on with the library of an earlier one."""
    for old in Path(root, "pfengine").glob(f"_C*{Path(SUFFIX).suffix}"):
        old.unlink()


def build_library(target: Path) -> None:
    """By the CMake and ninja beside this Python, as in a virtual environment, or else on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    cmake, ninja = (shutil.which(name, path=path) or name for name in ("cmake", "ninja"))
    chosen = [SUFFIX, str(ROOT), *map(os.environ.get, KEPT)]
    folder = ROOT / "build" / f"cmake-{zlib.crc32(repr(chosen).encode()):08x}"
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": ninja,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "PFENGINE_SANITIZE": os.environ.get("PFENGINE_SANITIZE", ""),
    }
    defined = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run([cmake, "-G", "Ninja", "--log-level=NOTICE", "-S", ROOT, "-B", folder, *defined], check=True)
    subprocess.run([cmake, "--build", folder], check=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / f"_C{SUFFIX}", target)


if __name__ == "__main__":
    if MODE not in MODES:
        sys.exit(f"PFENGINE_EXT is {MODE!r}, expected one of {', '.join(MODES)}")
    setup(
        ext_modules=[Extension("pfengine._C", [], optional=MODE == "auto")] if MODE != "0" else [],
        cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
    )
