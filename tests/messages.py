"""The messages of the package that ask a person to act, collected from its source.

A message is a text in which `HOLE` replaces each variable part. A variable is followed to its assignments in the
function, to the constants of the module, and to the constants that the module imports.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOLE = "\0"
# These run against a sandbox, or in the tests of a user.
_ELSEWHERE = re.compile(r"hubqueue/(sandbox|testing)/|/fake_\w+\.py|destinations/(\w+/)?sandbox\.py")
# Calls whose first argument is a message.
_MAKERS = {"Obstacle", "Absent", "Blocked", "Rejected", "RetryLater", "problem", "UsageError", "BadParameter"}
# Calls whose message continues the name of a setting, with the position of the message.
_CONTINUED = {"Refused": 0, "refuse": 1}
# Functions whose pairs are a problem and its hint.
_PROBLEMS = {"problems", "warnings", "incomplete"}
# Calls that return one of their arguments, in a form that a person can read.
_TRANSPARENT = {"clean", "harmless", "str", "wrap"}
# Functions that return a message, or the part of one after a colon.
_REASONS = {"_why_not", "elsewhere", "_judge"}
# Functions that append messages to a list.
_LISTS = {"describe", "_described", "unread"}
_MOST = 24


@dataclass(frozen=True, order=True)
class Message:
    """One message, and where it is made."""

    where: str
    text: str


@dataclass(frozen=True)
class _Module:
    tree: ast.Module

    @cached_property
    def constants(self) -> dict[str, ast.expr]:
        return dict(_assigned(self.tree.body))

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def function_of(self, node: ast.AST) -> str:
        """The name of the function around a node."""
        while not isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef)):
            node = self.parents[node]
        return getattr(node, "name", "")

    def imported(self, name: str) -> tuple[_Module, str] | None:
        """The module that a name is imported from, and its name there."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for each in node.names:
                    if (each.asname or each.name) == name and (found := _module(node.module)):
                        return found, each.name
                    if (each.asname or each.name) == name and (
                        found := _module(f"{node.module}.{each.name}")
                    ):
                        return found, ""
        return None


@cache
def _module(dotted: str) -> _Module | None:
    path = ROOT / (dotted.replace(".", "/") + ".py")
    return _Module(ast.parse(path.read_text())) if path.exists() else None


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                yield from zip(map(ast.unparse, names), values, strict=False)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value


@dataclass(frozen=True)
class _Reader:
    """Reads the texts that the expressions of a module can have."""

    module: _Module
    depth: int = 0

    def texts(self, node: ast.AST | None) -> list[str]:
        """Each text that an expression can have, at most `_MOST`."""
        return list(dict.fromkeys(re.sub(f"{HOLE}+", HOLE, each) for each in self._texts(node)))[:_MOST]

    def _texts(self, node: ast.AST | None) -> list[str]:
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=values):
                return self._joined(values)
            case ast.FormattedValue(value=value) | ast.NamedExpr(value=value):
                return self.texts(value)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._joined([left, right])
            case ast.IfExp(body=body, orelse=other):
                return [*self.texts(body), *self.texts(other)]
            case ast.BoolOp(op=ast.Or(), values=values):
                return [text for each in values for text in self.texts(each)]
            case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in _TRANSPARENT:
                return self.texts(first)
            case ast.Subscript(value=ast.Name(id=name)) if isinstance(
                table := self.module.constants.get(name), ast.Dict
            ):
                return [text for value in table.values for text in self.texts(value)]
            case ast.Name(id=name):
                return self._variable(node)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                found = self.module.imported(name)
                if found is not None and not found[1]:
                    return self._constant(found[0], attribute)
        return [HOLE]

    def _joined(self, parts: list[ast.expr]) -> list[str]:
        each = [self.texts(part) for part in parts]
        return ["".join(texts) for texts in itertools.islice(itertools.product(*each), _MOST)]

    def _variable(self, node: ast.Name) -> list[str]:
        found = [text for value in self._values(node) for text in self.texts(value)]
        if found:
            return found
        if node.id in self.module.constants:
            return self._constant(self.module, node.id)
        source = self.module.imported(node.id)
        return self._constant(*source) if source is not None else [HOLE]

    def _constant(self, module: _Module, name: str) -> list[str]:
        value = module.constants.get(name)
        return [HOLE] if value is None or self.depth > 4 else _Reader(module, self.depth + 1).texts(value)

    def _values(self, node: ast.Name) -> Iterator[ast.expr]:
        """What may have been assigned to a local variable before it is used: in the statements above its own."""
        current: ast.AST = node
        while not isinstance(current, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef)):
            parent = self.module.parents[current]
            for above in reversed(_above(parent, current)):
                found = list(_assignments(above, node.id))
                yield from found
                if found and isinstance(above, (ast.Assign, ast.AnnAssign)):
                    return
            if isinstance(parent, ast.For) and isinstance(parent.iter, ast.Name):
                table = self.module.constants.get(parent.iter.id)
                for row in table.elts if isinstance(table, ast.Tuple) else ():
                    yield from _unpacked(parent.target, row, node.id)
            current = parent


def _above(parent: ast.AST, current: ast.AST) -> list[ast.AST]:
    """What runs before a node in the same block: the statements above it, or the condition of its `if`."""
    for _, value in ast.iter_fields(parent):
        if isinstance(value, list) and current in value:
            test = getattr(parent, "test", None)
            return [*([test] if test is not None else []), *value[: value.index(current)]]
    return []


def _assignments(within: ast.AST, name: str) -> Iterator[ast.expr]:
    for node in ast.walk(within):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.NamedExpr, ast.AnnAssign)):
            targets = [node.target]
        for target in targets:
            yield from _unpacked(target, node.value, name)  # type: ignore[attr-defined]


def _unpacked(target: ast.expr, value: ast.expr | None, name: str) -> Iterator[ast.expr]:
    match target, value:
        case ast.Name(id=found), ast.expr() if found == name:
            yield value
        case ast.Tuple(), ast.IfExp(body=body, orelse=other):
            yield from _unpacked(target, body, name)
            yield from _unpacked(target, other, name)
        case ast.Tuple(elts=targets), ast.Tuple(elts=values) if len(targets) == len(values):
            for each, part in zip(targets, values, strict=True):
                yield from _unpacked(each, part, name)
        case ast.Tuple(elts=targets), ast.expr():
            for each in targets:
                if isinstance(each, ast.Name) and each.id == name:
                    yield ast.Constant(HOLE)


@cache
def messages() -> tuple[Message, ...]:
    """Every message that asks a person to act, in the order of the source."""
    found = []
    for name, module in _modules():
        texts = sorted({(line, " ".join(text.split())) for line, text in _collected(module)})
        found += [Message(f"{name}:{line}", text) for line, text in texts]
    return tuple(found)


@cache
def literals() -> str:
    """All texts of the package, a line each."""
    return "\n".join(
        " ".join(node.value.split())
        for _, module in _modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@cache
def _modules() -> tuple[tuple[str, _Module], ...]:
    paths = ((str(path.relative_to(ROOT)), path) for path in sorted((ROOT / "hubqueue").rglob("*.py")))
    return tuple(
        (name, _Module(ast.parse(path.read_text()))) for name, path in paths if not _ELSEWHERE.search(name)
    )


def _collected(module: _Module) -> Iterator[tuple[int, str]]:
    reader = _Reader(module)
    for node in ast.walk(module.tree):
        for expression in _expressions(node, module):
            for text in reader.texts(expression):
                yield node.lineno, text  # type: ignore[attr-defined]
        for text in _logged(node, reader):
            yield node.lineno, text  # type: ignore[attr-defined]


def _expressions(node: ast.AST, module: _Module) -> Iterator[ast.expr]:
    """The expressions of a node that are messages with a next step."""
    match node:
        case ast.Call(func=called, args=[first, *rest], keywords=keywords):
            name, named = getattr(called, "id", getattr(called, "attr", "")), {each.arg for each in keywords}
            if name == "Finding":
                if len(rest) > 1 and getattr(rest[0], "value", None) is not True:
                    yield rest[1]
            elif name in _CONTINUED:
                yield ast.JoinedStr([ast.Constant(f"{HOLE} "), node.args[_CONTINUED[name]]])
            elif name in _MAKERS or "hint" in named or (name == "echo" and "err" in named):
                yield from first.elts if isinstance(first, ast.Tuple) else [first]
            elif name == "append" and module.function_of(node) in _LISTS:
                yield first
        case ast.Dict(keys=keys, values=values):
            names = [getattr(key, "value", None) for key in keys]
            if "what" in names and "hint" in names:
                yield values[names.index("what")]
        case ast.Tuple(elts=[what, _]) if module.function_of(node) in _PROBLEMS:
            yield what
        case ast.Return(value=ast.Tuple(elts=[what, _])) if module.function_of(node) == "describe":
            yield what
        case ast.Return(value=ast.expr() as value) if module.function_of(node) in _REASONS:
            yield value


def _logged(node: ast.AST, reader: _Reader) -> Iterator[str]:
    """The lines of the log from a warning on, and what a command says with a next step."""
    match node:
        case ast.Call(func=ast.Attribute(attr="warning" | "error"), args=[first, *_]):
            is_logged = True
        case ast.Tuple(elts=[ast.Attribute(attr="WARNING" | "ERROR"), first]):
            is_logged = True
        case ast.Call(func=ast.Name(id="say"), args=[first, *_]):
            is_logged = False
        case _:
            return
    for line in reader.texts(first):
        whole = re.sub(r"%[sdr]", HOLE, line)
        if is_logged or re.search(r"\bhubqueue [a-z]", whole):
            yield re.sub(f"{HOLE}+", HOLE, whole)
