"""docs/architecture.md names what there is: every name and file on it exists, and every module is on it."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from .test_imports import MODULES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text()
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", PAGE)))

FILE_ENDS = ("cpp", "cu", "h", "json", "md", "py", "pyi", "sh", "safetensors")

CPP = [span.split(":", 1) for span in SPANS if span.startswith("csrc/") and ":" in span]
FILES = [span for span in SPANS if re.fullmatch(r"[\w.]+/[\w./]*", span)]
PYTHON = [span for span in SPANS if re.fullmatch(r"\w+(\.\w+)+", span) and span.rpartition(".")[2] not in FILE_ENDS]


def section(title: str) -> str:
    """The text between a heading and the next one of its level."""
    level = title.partition(" ")[0]
    return PAGE.partition(f"\n{title}\n")[2].partition(f"\n{level} ")[0]


LINKS = [
    (page, link)
    for page in ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/criteria.md", "docs/extending.md")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text())
]

CONTRIBUTING_FILES = [
    span
    for span in sorted(set(re.findall(r"`([^`\n]+)`", (ROOT / "CONTRIBUTING.md").read_text())))
    if re.fullmatch(r"[\w./]+\.(py|pyi|cpp|h|md)", span) and "NAME" not in span
]

WALK = section("## A walk from `classify` to the kernels")


@functools.cache
def names(module: str) -> dict[str, ast.stmt]:
    """What a module defines or imports, read from its source: `_C` need not be built, nor triton installed."""
    return members(ast.parse(MODULES[module].read_text()).body)


def members(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                found[name] = node
            case ast.Assign(targets=targets):
                found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = node
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                found |= {alias.asname or alias.name: node for alias in aliases}
    return found


def exists(name: str) -> bool:
    """Is it a module, a name in a module, or a member of a class in a module?"""
    name = name.removeprefix("pfengine.")
    parts = name.split(".")
    if name in MODULES:
        return True
    for count in range(len(parts) - 1, 0, -1):
        module, rest = ".".join(parts[:count]), parts[count:]
        if module in MODULES:
            return is_in(names(module), rest)
    return False


def is_in(found: dict[str, ast.stmt], rest: list[str]) -> bool:
    for part in rest:
        if part not in found:
            return False
        node = found[part]
        found = members(node.body) if isinstance(node, ast.ClassDef) else {}
    return True


@pytest.mark.parametrize("name", PYTHON)
def test_every_dotted_name_exists(name: str) -> None:
    assert exists(name)


@pytest.mark.parametrize("file", FILES)
def test_every_file_exists(file: str) -> None:
    assert any((root / file).exists() for root in (ROOT, ROOT / "pfengine"))


@pytest.mark.parametrize("file", CONTRIBUTING_FILES)
def test_every_file_of_contributing_exists(file: str) -> None:
    """In its table a file may be named from the package or from csrc/cpu on."""
    assert any((ROOT / root / file).exists() for root in (".", "pfengine", "csrc/cpu"))


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_somewhere(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists()


@pytest.mark.parametrize(("file", "name"), CPP)
def test_every_name_in_cpp_is_defined_in_its_file(file: str, name: str) -> None:
    """Defined: at the start of a line with what it returns or as a class, and not as a call within a function."""
    source = (ROOT / file).read_text()
    outside = r"^(?:template.*\n)?(?:(?:class|struct) |\w[\w:<>*& ]* [*&]?)"
    assert re.search(rf"{outside}{re.escape(name)}\b *(?:: public \w+ )?[({{=]", source, re.MULTILINE), (
        f"{file} defines no {name}"
    )


def test_the_walk_reaches_the_kernels_of_every_carrier() -> None:
    spans = re.findall(r"`([^`\n]+)`", WALK)
    for end in ("csrc/cpu/tile.h:tile_of", "ops.cpu.block", "kernels.attention.attention", "engine.run_reference"):
        assert end in spans
    assert len(CPP) >= 15


def test_every_module_is_named() -> None:
    missing = [name for name in MODULES if name not in ("kernels", "kernels.__init__") and name not in SPANS]
    assert not missing, f"add to 'Where things are' in docs/architecture.md: {missing}"


def test_every_file_of_the_extension_is_named() -> None:
    files = [str(file.relative_to(ROOT)) for file in (ROOT / "csrc").rglob("*") if file.is_file()]
    missing = [file for file in files if file not in SPANS]
    assert not missing, f"add to 'Where things are' in docs/architecture.md: {missing}"


@pytest.mark.parametrize("wrong", ["api.Engine.clasify", "engine.run_layers", "ops.model", "exits.data.Binding.no"])
def test_a_name_that_is_gone_is_noticed(wrong: str) -> None:
    assert not exists(wrong)


def bound_in_cpp() -> dict[str, list[str]]:
    """The functions and classes of `_C` with the names of their arguments, as csrc hands them to pybind11."""
    found: dict[str, list[str]] = {}
    for file in ("bindings", "flights", "parts", "rules", "segment_loops"):
        source = (ROOT / f"csrc/{file}.cpp").read_text()
        for name, rest in re.findall(r'\bm\.def\(\s*"(\w+)",(.*?)\);\n', source, re.DOTALL):
            found[name] = re.findall(r'"(\w+)"_a', rest)
        for name, rest in re.findall(
            r'\(m, "(\w+)"\)\s*\.def\(py::init\((.*?_a(?:\.noconvert\(\))?)\)[;\n]', source, re.DOTALL
        ):
            found[name] = re.findall(r'"(\w+)"_a', rest)
    return found


def test_the_stub_names_what_cpp_defines() -> None:
    stub: dict[str, list[str]] = {}
    for name, node in names("_C").items():
        function = members(node.body).get("__init__") if isinstance(node, ast.ClassDef) else node
        if isinstance(function, ast.FunctionDef):
            arguments = [*function.args.args, *function.args.kwonlyargs]
            stub[name] = [argument.arg for argument in arguments if argument.arg != "self"]
    assert stub == bound_in_cpp()
    assert len(stub) >= 30
