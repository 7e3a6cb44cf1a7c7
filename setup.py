"""Builds pfengine._C as PFENGINE_EXT says: auto (default: as much as this machine can) | cpu | cuda | 0 (nothing).

PFENGINE_SANITIZE: the compiler's sanitizers to build it with, such as "address,undefined"; see `make sanitize`.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CompileError, LinkError

ROOT = Path(__file__).parent.resolve()
CPP_SOURCES = [
    *(f"csrc/{name}.cpp" for name in ("bindings", "flights", "parts", "rules")),
    *(f"csrc/cpu/{name}.cpp" for name in ("compact", "criterion", "crew", "exit", "find_kernels", "flight")),
    *(f"csrc/cpu/{name}.cpp" for name in ("flight_pass", "layer", "linear", "signal")),
]
KERNELS = "csrc/cpu/kernels.cpp"  # built once for each of these; which of them runs is decided at run time
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx2", "-mfma"]
INSTRUCTION_SETS = {"plain": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS |= {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
CUDA_SOURCES = ["csrc/cuda/compact.cu"]
# machine code for sm_80 and sm_90, and PTX of the latter for what comes after
CUDA_TARGETS = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]
SANITIZERS = os.environ.get("PFENGINE_SANITIZE", "")
SANITIZE = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
OPTIMISE = ["-O1", *SANITIZE] if SANITIZERS else ["-O3"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fPIC", *CUDA_TARGETS]

CPU, CUDA = "C++", "C++ and CUDA"
ATTEMPTS = {"auto": [CUDA, CPU], "cuda": [CUDA], "cpu": [CPU], "0": []}


def find_nvcc() -> Path | None:
    """nvcc, GPU or not: where the environment says, at the usual place, on the PATH."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home, "bin", "nvcc") for home in homes if home]
    found = shutil.which("nvcc")
    return next((nvcc for nvcc in places if nvcc.is_file()), Path(found) if found else None)


def cuda_library_dirs(nvcc: Path) -> Iterator[Path]:
    """Where nvcc's own toolkit has its libraries; asked of nvcc, as the file found may be a mere wrapper."""
    command = [str(nvcc), "--dryrun", "-c", str(ROOT / CUDA_SOURCES[0])]
    plan = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    for line in plan.splitlines():
        name, _, value = line.removeprefix("#$ ").partition("=")
        if name == "LIBRARIES":
            yield from (Path(part.removeprefix("-L")) for part in shlex.split(value))
        elif name == "TOP":
            yield from (Path(value, "lib64"), Path(value, "lib"))


class BuildExtension(build_ext):
    """Tries the richest build first; only `auto` settles for nothing, and says so."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # what an earlier build with another PFENGINE_EXT left is never up to date

    def run(self) -> None:
        remove_built(Path(self.build_lib))
        if self.inplace:
            remove_built(ROOT)
        super().run()

    def build_extension(self, extension: Pybind11Extension) -> None:
        compile_args, link_args = extension.extra_compile_args, extension.extra_link_args
        for attempt in ATTEMPTS[MODE]:
            extension.extra_compile_args = [*compile_args, *OPTIMISE]
            extension.extra_link_args = [*link_args, "-pthread", *(SANITIZE if SANITIZERS else [])]
            extension.extra_objects, extension.define_macros = [], []
            try:
                self.add_kernels(extension)
                if attempt == CUDA:
                    self.add_cuda(extension)
                super().build_extension(extension)
            except (BaseError, CompileError, LinkError, OSError, subprocess.CalledProcessError) as error:
                print(f"pfengine._C ({attempt}) could not be built: {error}", file=sys.stderr)
                continue
            print(f"pfengine._C ({attempt}) was built")
            return
        if MODE != "auto":
            raise CompileError(f"PFENGINE_EXT={MODE}: pfengine._C could not be built; the reason is above")
        print("pfengine._C was not built: pfengine will run on torch alone", file=sys.stderr)

    def add_kernels(self, extension: Pybind11Extension) -> None:
        """Every set of instructions the compiler knows; all but the plain one may be missing."""
        for name, flags in INSTRUCTION_SETS.items():
            try:
                extension.extra_objects += self.compiler.compile(
                    [KERNELS],
                    output_dir=str(Path(self.build_temp, name)),
                    macros=[("PFENGINE_ISA", name)],
                    extra_postargs=["-std=c++17", *OPTIMISE, "-fvisibility=hidden", *flags],
                )
            except CompileError as error:
                if not flags:
                    raise
                print(f"kernels for {name} could not be built: {error}", file=sys.stderr)
            else:
                extension.define_macros.append((f"PFENGINE_{name.upper()}", "1"))

    def add_cuda(self, extension: Pybind11Extension) -> None:
        nvcc = find_nvcc()
        if nvcc is None:
            raise CompileError("there is no nvcc in CUDA_HOME, CUDA_PATH, /usr/local/cuda or on the PATH")
        for source in CUDA_SOURCES:
            target = Path(self.build_temp, source).with_suffix(".cuda.o")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.spawn([str(nvcc), *NVCC_FLAGS, "-c", source, "-o", str(target)])
            extension.extra_objects.append(str(target))
        extension.define_macros.append(("PFENGINE_CUDA", "1"))
        # static: imports without a driver, and beside any torch
        directories = [f"-L{path}" for path in cuda_library_dirs(nvcc)]
        extension.extra_link_args += [*directories, "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


class BuildPython(build_py):
    def run(self) -> None:
        if MODE == "0":  # build_ext does not run then
            remove_built(ROOT if self.editable_mode else Path(self.build_lib))
        super().run()


def remove_built(root: Path) -> None:
    """No build goes on with the library of an earlier one."""
    for old in Path(root, "pfengine").glob(f"_C*{Path(sysconfig.get_config_var('EXT_SUFFIX')).suffix}"):
        old.unlink()


MODE = os.environ.get("PFENGINE_EXT", "auto")

if __name__ == "__main__":
    if MODE not in ATTEMPTS:
        sys.exit(f"PFENGINE_EXT is {MODE!r}, expected one of {', '.join(ATTEMPTS)}")
    extension = Pybind11Extension(
        "pfengine._C", CPP_SOURCES, include_dirs=["csrc"], cxx_std=17, optional=MODE == "auto"
    )
    setup(
        ext_modules=[extension] if ATTEMPTS[MODE] else [],
        cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
    )
