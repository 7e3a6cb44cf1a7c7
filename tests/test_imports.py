"""Imports point down, and never in a circle. They are read from the source: those in functions and for types count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pfengine

PACKAGE = Path(pfengine.__file__).parent

# Modules of `pfengine`, from the lowest layer up; a package stands for all modules in it. A module may import from its
# own line and from the lines before it.
LAYERS = {
    "basics": "_version cpu_count entities errors forking messages options prefetch registry row_thread strict_json "
    "torch_state",
    "extension": "_C extension batch",
    "kernels": "kernels",
    "ops": "ops",
    "checkpoint": "cascade_manifest checkpoint config destination disentangled distances families file_hashes folder "
    "json_fields manifest modern storage weights",
    "text": "batching data id_rows rows tasks tokenization tokenizer_classes tokenizer_fields tokenizer_files "
    "windows words",
    "parts": "encoder exits heads",
    "engine": "engine merging model token_flight torch_flight",
    "api": "answering answers api bundled cascade_model cascade_reader cascade_runner cascade_saving devices inference "
    "loading per_row ranked ranking reader reload saving tagging",
    "whole runs": "comparison convert evaluation training",
    "faces": "__init__ __main__ cli cli_comparison cli_evaluation cli_export cli_io cli_options cli_output cli_ranking "
    "cli_serving cli_tagging cli_training console demo pipeline pipeline_options serving stacks",
}
LAYER_OF = {name: i for i, names in enumerate(LAYERS.values()) for name in names.split()}

# The first never imports the second, whatever their layers.
STRANGERS = [("exits", "checkpoint"), ("exits", "heads"), ("heads", "checkpoint"), ("heads", "exits")]


def modules() -> dict[str, Path]:
    """Every module by its name within `pfengine`. The package itself is "__init__", another one its folder."""
    found = {"_C": PACKAGE / "_C.pyi"}
    for folder, prefix in ((PACKAGE, ""), ((PACKAGE / "kernels").resolve(), "kernels.")):  # a symbolic link
        for file in folder.rglob("*.py"):
            name = prefix + ".".join(file.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix(".__init__") if name != "__init__" else name] = file
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The modules of ours that a module imports, wherever in it."""
    file = MODULES[name]
    parts = [] if name == "__init__" else name.split(".")
    package = parts if file.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ["pfengine", *base] if node.level else base
            start = ".".join([*base, *([node.module] if node.module else [])])
            wanted = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in wanted:
            if target == "pfengine" or target.startswith("pfengine."):
                yield module_of(target.removeprefix("pfengine").removeprefix("."))


def module_of(target: str) -> str:
    """The module that `target`, a module or a name in one, belongs to."""
    while target and target not in MODULES:
        target = target.rpartition(".")[0]
    return target or "__init__"


GRAPH = {name: sorted({*imports(name)} - {name}) for name in MODULES}


def layer_of(name: str) -> int:
    return LAYER_OF[name.partition(".")[0]]


def circles(graph: dict[str, list[str]]) -> list[list[str]]:
    """Modules that import each other in a circle, one path for each module that is first found in one."""
    found, done = [], set()

    def follow(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in graph[name]:
                follow(target, [*path, name])
            done.add(name)

    for name in graph:
        follow(name, [])
    return found


def test_every_module_has_a_layer() -> None:
    missing = {name.partition(".")[0] for name in MODULES} - set(LAYER_OF)
    assert not missing, f"add to LAYERS: {sorted(missing)}"
    gone = set(LAYER_OF) - {name.partition(".")[0] for name in MODULES}
    assert not gone, f"remove from LAYERS: {sorted(gone)}"


def test_the_source_is_read_in_all_its_forms() -> None:
    assert "_C" in GRAPH["extension"]  # in a `try`
    assert "training" in GRAPH["__init__"]  # under TYPE_CHECKING
    assert "demo" in GRAPH["cli"]  # in a function
    assert "kernels.launch" in GRAPH["kernels.linear"]  # from the package they are in


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(GRAPH) == []
    assert circles({"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": []}) == [["a", "b", "c", "a"]]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_upward(name: str) -> None:
    upward = [target for target in GRAPH[name] if layer_of(target) > layer_of(name)]
    assert not upward, f"{name} imports {upward}, which lie above it"


@pytest.mark.parametrize(("name", "stranger"), STRANGERS)
def test_what_knows_nothing_of_each_other(name: str, stranger: str) -> None:
    found = [
        (module, target)
        for module, targets in GRAPH.items()
        for target in targets
        if module.partition(".")[0] == name and target.partition(".")[0] == stranger
    ]
    assert not found
