"""A hash of the code of a metric, so that numbers of other code are never averaged with those of this one."""

import ast
import functools
import importlib.util
from pathlib import Path

from motionanim.files import text_sha256

# What metrics compute with.
_FOLLOWED = ("motionanim.metrics", "motionanim.motion", "motionanim.models", "motionanim.media")


def code_of(part: object) -> str:
    """16 hex digits: a hash of the code of an object, of what it holds, and of all modules that these import.

    Comments, docstrings and layout do not change it.

    Args:
        part: A metric or an extractor; or a class.
    """
    kinds = {part} if isinstance(part, type) else {type(each) for each in (part, *_held(part))}
    modules = {kind.__module__ for kind in kinds}
    return text_sha256(" ".join(sorted(_hashed(name) for name in modules if name.startswith(_FOLLOWED))))[:16]


def _held(part: object) -> list[object]:
    """The attributes of an object, such as a metric's flow estimator, and the parts of a network."""
    inner = vars(part) if hasattr(part, "__dict__") else {}
    return [*inner.values(), *(inner.get("_modules") or {}).values()]


@functools.cache
def _hashed(module: str) -> str:
    found: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        spec = None if name in found else importlib.util.find_spec(name)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        todo += [each for each in _imports(tree) if each.startswith(_FOLLOWED)]
        found[name] = ast.dump(_without_docstrings(tree))
    return text_sha256("\n".join(found[name] for name in sorted(found)))[:16]


def _imports(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            # `from motionanim.motion import camera` names a module.
            names += [f"{node.module}.{alias.name}" for alias in node.names if _is_module(node.module, alias.name)]
    return names


def _is_module(package: str, name: str) -> bool:
    spec = importlib.util.find_spec(package) if package.startswith(_FOLLOWED) else None
    places = spec.submodule_search_locations if spec is not None else None
    return any(Path(place, f"{name}.py").is_file() for place in places or ())


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree
