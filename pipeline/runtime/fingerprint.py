"""Names for content: the same values and the same code give the same hex digest, anywhere."""

import ast
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
ROOT = Path(__file__).parents[1]  # of the package


def of_value(value: Any) -> str:
    """sha256 of plain data, as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of_modules(module: str) -> dict[str, str]:
    """Digest of each module of this package that `module` can reach, itself included.

    Comments, docstrings and layout do not count: the digest is that of the syntax tree.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and (read := _module(name)) is not None:
            found[name], imported = read
            waiting += imported
    return found


def of_sources(code: Mapping[str, str]) -> str:
    """Of `code`, as `of_modules` gives it, and of the files of those modules as they are now, which need not be parsed for it."""
    sources = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name in code if (path := _path(name)) is not None}
    return of_value([code, sources])


@functools.cache
def _module(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Digest and imports of one module, or None if `name` is not a module of this package."""
    path = _path(name)
    if path is None:
        return None
    tree = ast.parse(path.read_bytes())
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            imported += [a.name for a in node.names]
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(imported)


def _path(name: str) -> Path | None:
    """Where the module `name` of this package is, if it is one."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return None
    path = ROOT.joinpath(*parts[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path if path.is_file() else None
