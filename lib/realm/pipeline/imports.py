"""Which files of the library a notebook runs on: its imports followed to their end, with the data that modules read."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from realm.core.errors import OneLineError

LIBRARY = Path(__file__).resolve().parents[1]
PACKAGE = LIBRARY.name
# A literal that may name a file: relative, on one line, no steps upwards.
NAMES_A_FILE = re.compile(r"(?!.*\.\.)\w[\w./-]{0,99}")


class UnknownImport(OneLineError, ImportError):
    """An import that leads to no file of the library; the message names who imports what."""


class Reads(NamedTuple):
    """What a source names: modules (``("realm.core.files", "atomic_path")``), and literals that may be files."""

    imports: tuple[tuple[str, str | None], ...]
    literals: frozenset[str]


def files_behind(source: str, importer: str) -> dict[str, Path]:
    """Path below the library's parent -> file, of every module that ``source`` imports, however indirectly, of the
    packages around them, and of the templates and data files that these modules read.

    A module names its data by a literal: beside it (``"model_card.md.j2"``, ``"published"``), or from the root of the
    repository (``"cluster/fsdp.yaml"``). Raises UnknownImport, naming ``importer`` or the module at fault.
    """
    found: dict[str, Path] = {}
    waiting = _modules(_reads(source), importer)
    while waiting:
        path = waiting.pop()
        name = str(path.relative_to(LIBRARY.parent))
        if name in found:
            continue
        found[name] = path
        reads = _reads(path.read_text(encoding="utf-8"))
        waiting |= _modules(reads, name)
        for data in _data_files(reads, path.parent):
            found[str(data.relative_to(LIBRARY.parents[1]))] = data
    return found


@lru_cache(maxsize=512)
def _reads(source: str) -> Reads:
    # A cell's top-level await is no plain Python; the flag lets it be parsed all the same.
    tree = compile(source, "<source>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    imports: list[tuple[str, str | None]] = []
    literals = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports += [("." * node.level + (node.module or ""), alias.name) for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMES_A_FILE.fullmatch(node.value):
            literals.add(node.value)
    own = [(module, name) for module, name in imports if module.split(".")[0] in (PACKAGE, "")]
    return Reads(tuple(dict.fromkeys(own)), frozenset(literals))


def _modules(reads: Reads, importer: str) -> set[Path]:
    files = set()
    for module, name in reads.imports:
        if module.startswith("."):
            raise UnknownImport(f"{importer}: imports by a relative name, {module}; write it out from {PACKAGE} on")
        parts = module.split(".")
        packages = ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]
        file = _file(packages[-1])
        inner = _file(f"{packages[-1]}/{name}") if name else None
        if file is None or (name and inner is None and file.name == "__init__.py" and not _binds(file, name)):
            whole = module if file is None else f"{module}.{name}"
            raise UnknownImport(f"{importer}: imports {whole}, which is no file of the library; correct the import")
        files |= {_file(package) for package in packages} | ({inner} if inner else set())
    return files


def _file(name: str) -> Path | None:
    """The file that Python would load for a slashed module name: a package's ``__init__`` comes first."""
    place = LIBRARY.parent / name
    return next((p for p in (place / "__init__.py", place.with_name(f"{place.name}.py")) if p.is_file()), None)


def _binds(package: Path, name: str) -> bool:
    """Whether a package's own file gives ``name`` a value."""
    tree = ast.parse(package.read_text(encoding="utf-8"))
    return any(isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store) for n in ast.walk(tree))


def _data_files(reads: Reads, beside: Path) -> set[Path]:
    files: set[Path] = set()
    for literal in reads.literals:
        place = beside / literal
        if place.is_dir() and not (place / "__init__.py").exists():
            files |= {p for p in place.rglob("*") if p.is_file() and p.suffix != ".pyc"}
        candidates = [place, *([LIBRARY.parents[1] / literal] if "/" in literal else [])]
        files |= {p for p in candidates if p.is_file() and p.suffix != ".py"}
    return files
