"""Checks the calls of a Python block against real signatures, without running it."""

import ast
import importlib
import inspect
from typing import Any

# What a page may use without making it: the names that README introduces.
GIVEN = {
    "controller": ("llmdiff", "LLMController"),
    "llm": ("llmdiff", "DecoderLLM"),
    "pipe": ("diffusers", "StableDiffusionPipeline"),
}
_MAKES = {"load_pipeline": GIVEN["pipe"]}


class _Instance:
    """Stands for an object of a class, where only the class is known."""

    def __init__(self, cls: type) -> None:
        self.cls = cls


def check_calls(source: str) -> int:
    """Returns how many calls were held against a signature.

    Raises:
        ImportError, AttributeError, TypeError: a name or an argument that is not there.
    """
    known: dict[str, Any] = {name: _Instance(_imported(*home)) for name, home in GIVEN.items()}
    known |= {
        "DecoderLLM": _imported("llmdiff", "DecoderLLM"),
        "LLMController": _imported("llmdiff", "LLMController"),
    }
    checked = 0
    for node in _in_order(ast.parse(source)):
        match node:
            case ast.ImportFrom():
                for alias in node.names:
                    known[alias.asname or alias.name] = _imported(str(node.module), alias.name)
            case ast.Import():
                for alias in node.names:
                    known[alias.asname or alias.name.partition(".")[0]] = importlib.import_module(alias.name)
            case ast.Call():
                target = _resolved(node.func, known)
                if callable(target):
                    _bind(target, node)
                    checked += 1
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                known[name] = _made(call, known)
    return checked


def _in_order(tree: ast.AST) -> list[ast.AST]:
    """Every node, the parts of a statement before what it assigns to, statements as they stand."""
    out: list[ast.AST] = []
    for child in ast.iter_child_nodes(tree):
        out += [*_in_order(child), child]
    return out


def _imported(module: str, name: str) -> Any:
    home = importlib.import_module(module)
    return getattr(home, name) if hasattr(home, name) else importlib.import_module(f"{module}.{name}")


def _resolved(func: ast.expr, known: dict[str, Any]) -> Any:
    """The function that is called, its instance bound; None where that cannot be known."""
    match func:
        case ast.Name(id=name):
            found = known.get(name)
            return None if isinstance(found, _Instance) else found
        case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in known:
            home = known[owner]
            if not isinstance(home, _Instance):
                return getattr(home, name) if home is not None else None
            member = inspect.getattr_static(home.cls, name, None) or getattr(home.cls, name)
            method = getattr(home.cls, name)
            return method.__get__(object()) if inspect.isfunction(member) else method
    return None


def _made(call: ast.Call, known: dict[str, Any]) -> Any:
    """An instance of the class that a call makes, None where that cannot be known."""
    match call.func:
        case ast.Attribute(attr=name) if name in _MAKES:
            return _Instance(_imported(*_MAKES[name]))
        case ast.Attribute(value=ast.Name(id=owner)) if isinstance(known.get(owner), type):
            return _Instance(known[owner])
        case ast.Name(id=name) if isinstance(known.get(name), type):
            return _Instance(known[name])
    return None


def _bind(target: Any, call: ast.Call) -> None:
    if any(isinstance(one, ast.Starred) for one in call.args) or any(
        one.arg is None for one in call.keywords
    ):
        return
    try:
        signature = inspect.signature(target)
    except ValueError:  # written in C
        return
    try:
        signature.bind(*call.args, **{str(one.arg): one.value for one in call.keywords})
    except TypeError as error:
        raise TypeError(f"line {call.lineno}: {ast.unparse(call)}: {error}") from error
