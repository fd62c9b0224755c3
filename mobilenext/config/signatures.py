"""What a callable takes, read from its source: importing it would load torch, for seconds."""

import ast
import importlib.util
import re
from pathlib import Path


def parameters_of(target: str) -> list[str] | None:
    """Names of what a callable takes; None: any names, or its source was not found.

    Args:
        target: Its dotted path, for instance mobilenext.optim.cosine: a module, or a package in one
            of whose files it is defined, and its name.
    """
    package, *inner = target.split(".")
    spec = importlib.util.find_spec(package) if package.isidentifier() and len(inner) > 1 else None
    for root in (spec and spec.submodule_search_locations) or ():
        found = [node for file in _files(Path(root, *inner[:-1])) for node in _of(file, inner[-1])]
        if len(found) == 1 and found[0].args.kwarg is None:
            of = found[0].args
            named = [*of.posonlyargs, *of.args, *of.kwonlyargs]
            return [one.arg for one in named if one.arg != "self"]
        if found:
            return None
    return None


def _files(place: Path) -> list[Path]:
    """The files of a module, which is one or a folder."""
    if place.is_dir():
        return sorted(place.rglob("*.py"))
    file = place.with_suffix(".py")
    return [file] if file.is_file() else []


def _of(path: Path, name: str) -> list[ast.FunctionDef]:
    """The function of that name in a file, or the constructor of the class."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not re.search(rf"^(def|class) {re.escape(name)}\b", text, re.MULTILINE):
        return []
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            found.append(node)
        elif isinstance(node, ast.ClassDef) and node.name == name:
            inside = [one for one in node.body if isinstance(one, ast.FunctionDef)]
            found += [one for one in inside if one.name == "__init__"]
    return found
