"""Read one source file without running it: its functions, classes, comments and the errors it raises."""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tdro.demo.sources import SourceFile

MAX_COMMENT_LINES = 4
MAX_COMMENTED_LINES = 12
PLACEHOLDER = "..."


@dataclass(frozen=True)
class ErrorSite:
    """A raised message and the code of the function around it, with the message blotted out of that code."""

    exception: str
    message: str
    code: str


@dataclass(frozen=True)
class Comment:
    """A comment and the lines of code it introduces."""

    text: str
    code: str


@dataclass(frozen=True)
class Function:
    """A function or method.

    `scope` is empty or the class around it with a dot, as in `Class.`. `code` has no docstring and no decorators; it is
    empty where nothing else is there.
    """

    scope: str
    name: str
    signature: str
    doc: str
    code: str
    errors: tuple[ErrorSite, ...]
    comments: tuple[Comment, ...]

    @property
    def qualname(self) -> str:
        """The name with the class it is in."""
        return self.scope + self.name


@dataclass(frozen=True)
class Class:
    """A class: its name and docstring."""

    name: str
    doc: str


@dataclass(frozen=True)
class Module:
    """What one file says: dotted name, docstring, functions and classes in order of appearance."""

    name: str
    doc: str
    functions: tuple[Function, ...]
    classes: tuple[Class, ...]


_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def read_module(file: SourceFile) -> Module | None:
    """Parse a file; None where it is not valid Python for this interpreter (templates, other versions)."""
    try:
        source = file.path.read_bytes().decode("utf-8-sig")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = re.split(r"\r\n|\r|\n", source)
    nodes = list(_definitions(tree.body, ""))
    return Module(
        name=file.module,
        doc=ast.get_docstring(tree) or "",
        functions=tuple(_function(node, scope, lines) for node, scope in nodes if not isinstance(node, ast.ClassDef)),
        classes=tuple(
            Class(node.name, ast.get_docstring(node) or "") for node, _ in nodes if isinstance(node, ast.ClassDef)
        ),
    )


def _definitions(body: Sequence[ast.stmt], scope: str) -> Iterator[tuple[_FunctionNode | ast.ClassDef, str]]:
    """Yield functions and classes with the name of the class around them; not those inside functions."""
    for node in body:
        if isinstance(node, _FunctionNode):
            yield node, scope
        elif isinstance(node, ast.ClassDef):
            yield node, scope
            yield from _definitions(node.body, f"{scope}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions([*node.body, *node.orelse], scope)


def _function(node: _FunctionNode, scope: str, lines: Sequence[str]) -> Function:
    """Gather what a function says about itself."""
    inner = list(_statements(node.body))
    return Function(
        scope=scope,
        name=node.name,
        signature=_signature(node, scope),
        doc=ast.get_docstring(node) or "",
        code=_code(node, lines[node.lineno - 1 : node.end_lineno]),
        errors=tuple(_errors(node, inner, lines)),
        comments=tuple(_comments(node, inner, lines)),
    )


def _statements(body: Sequence[ast.AST]) -> Iterator[ast.stmt]:
    """Yield statements and the statements inside them, in order."""
    for node in body:
        if isinstance(node, ast.stmt):
            yield node
        for block in ("body", "handlers", "cases", "orelse", "finalbody"):
            yield from _statements(getattr(node, block, ()))


def _signature(node: _FunctionNode, scope: str) -> str:
    """Write `Class.name(arguments) -> result`, without self and cls."""
    arguments = re.sub(r"^(self|cls)(, |$)", "", ast.unparse(node.args))
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{scope}{node.name}({arguments}){result}"


def _code(node: _FunctionNode, lines: Sequence[str]) -> str:
    """Return the dedented function without its docstring, from its own lines (the docstring's lines unchanged)."""
    first, kept = node.body[0], list(lines)
    if ast.get_docstring(node, clean=False) is not None:
        if len(node.body) == 1 or first.lineno == node.lineno or first.end_lineno == node.body[1].lineno:
            return ""
        del kept[first.lineno - node.lineno : (first.end_lineno or first.lineno) - node.lineno + 1]
    return textwrap.dedent("\n".join(kept)).rstrip()


def _errors(node: _FunctionNode, inner: Sequence[ast.stmt], lines: Sequence[str]) -> Iterator[ErrorSite]:
    """Yield the messages a function raises."""
    for raised in inner:
        if isinstance(raised, ast.Raise) and isinstance(raised.exc, ast.Call) and raised.exc.args:
            message = re.sub(r"\.{4,}", PLACEHOLDER, _message(raised.exc.args[0]))
            code = _code(node, _blot(raised.exc, node, lines)) if message else ""
            if code:
                yield ErrorSite(ast.unparse(raised.exc.func).rpartition(".")[2], message, code)


def _blot(call: ast.Call, node: _FunctionNode, lines: Sequence[str]) -> list[str]:
    """Return the function's lines with the call's arguments replaced by `...`."""
    first, last = call.func.end_lineno or call.lineno, call.end_lineno or call.lineno
    before = lines[first - 1].encode()[: call.func.end_col_offset].decode()
    after = lines[last - 1].encode()[call.end_col_offset :].decode()
    return [*lines[node.lineno - 1 : first - 1], f"{before}({PLACEHOLDER}){after}", *lines[last : node.end_lineno]]


def _message(node: ast.expr) -> str:
    """Return the text of a message with `...` for the values put into it; empty where it is not written out."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER for part in parts)
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod()):
            return re.sub(r"%(\(\w+\))?[-#0-9.]*[a-zA-Z]", PLACEHOLDER, text)
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
            return re.sub(r"\{[^{}]*\}", PLACEHOLDER, text)
    return ""


def _comments(node: _FunctionNode, inner: Sequence[ast.stmt], lines: Sequence[str]) -> Iterator[Comment]:
    """Yield the comments between statements of a function, each with the code below it."""
    inside = {
        line
        for statement in inner
        if not hasattr(statement, "body")
        for line in range(statement.lineno + 1, (statement.end_lineno or statement.lineno) + 1)
    }
    at, end = node.lineno, node.end_lineno or node.lineno
    while at < end:
        start = at
        while at < end and lines[at].lstrip().startswith("#") and at + 1 not in inside:
            at += 1
        if start < at <= start + MAX_COMMENT_LINES:
            code = _commented(lines, start, at, end)
            if code:
                yield Comment(" ".join(line.strip().lstrip("#:! ") for line in lines[start:at]), code)
        at = max(at, start + 1)


def _commented(lines: Sequence[str], start: int, at: int, end: int) -> str:
    """Return the code a comment introduces: up to a blank line, a smaller indent or the next comment of its indent."""
    indent = len(lines[start]) - len(lines[start].lstrip())
    kept: list[str] = []
    for line in lines[at : min(end, at + MAX_COMMENTED_LINES)]:
        own = len(line) - len(line.lstrip())
        if not line.strip() or own < indent or (own == indent and line.lstrip().startswith("#")):
            break
        kept.append(line)
    return textwrap.dedent("\n".join(kept)).strip()
