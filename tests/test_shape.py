"""The shape of the code: short files, short functions, private names kept private, no import circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("training", "indexer", "search", "eval")
MOST_LINES_OF_FILE, MOST_LINES_OF_FUNCTION = 400, 60
KERNELS = {"indexer/coding/kernels.py", "search/kernels.py"}
# What is longer today. Entries may go and numbers may fall; nothing may be added.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS = {
    "indexer/store/postings.py:_pack": 63,
}


def sources() -> list[Path]:
    return sorted([*ROOT.glob("*.py"), *(p for package in PACKAGES for p in ROOT.glob(f"{package}/**/*.py"))])


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files_are_short():
    lines = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in sources()}
    long = {name: n for name, n in lines.items() if n > MOST_LINES_OF_FILE and name not in KERNELS}
    assert_only_shrinks(long, LONG_FILES)


def test_functions_are_short():
    long = {}
    for path in sources():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and name_of(path) not in KERNELS:
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                if lines > MOST_LINES_OF_FUNCTION:
                    long[f"{name_of(path)}:{node.name}"] = lines
    assert_only_shrinks(long, LONG_FUNCTIONS)


def assert_only_shrinks(found: dict[str, int], allowed: dict[str, int]) -> None:
    assert {name: n for name, n in found.items() if n > allowed.get(name, 0)} == {}
    assert allowed.keys() - found.keys() == set(), "these are short now: take them off the list"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_no_private_name_is_used_from_another_file(path):
    """Neither `from module import _name` nor `module._name`."""
    tree, used = tree_of(path), []
    modules: set[str] = set()  # names that stand for something imported from this project
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            used += [alias.name for alias in node.names if is_private(alias.name)]
            used += [part for part in (node.module or "").split(".") if is_private(part)]
            modules |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            used += [f"{node.value.id}.{node.attr}"] if is_private(node.attr) else []
    assert used == []


def is_private(name: str) -> bool:
    public = ("_asdict", "_fields", "_make", "_replace")  # of named tuples
    return name.startswith("_") and not name.startswith("__") and name not in public


def test_no_import_circle():
    """Imports inside functions count: what needs them needs the other file all the same."""
    modules = {module_of(p): p for p in sources()}
    imports = {name: set(imported(path, modules)) - {name} for name, path in modules.items()}
    assert circle_in(imports) is None


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """The project's modules that a file imports, but for types alone."""
    for node in running_nodes(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                if module in modules or node.module in modules:
                    yield module if module in modules else node.module


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below one, without what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from running_nodes(child)


def circle_in(imports: dict[str, set[str]]) -> list[str] | None:
    """A row of modules of which each imports the next and the last one the first; None where there is none."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str] | None:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return None
        for next_one in sorted(imports[module]):
            if found := visit(next_one, [*way, module]):
                return found
        done.add(module)
        return None

    for module in sorted(imports):
        if found := visit(module, []):
            return found
    return None


def test_no_package_needs_the_door():
    """The benchmarks alone, which time what a user calls, come in by it."""
    modules = {module_of(p): p for p in sources()}
    users = {name for name, path in modules.items() if "sparsight" in imported(path, modules)}
    assert {name for name in users if not name.startswith("eval.bench.")} == set()


def test_a_circle_is_found():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
