"""The demo's kinds of pairs: from what a package says about itself to pairs of a query and the text that answers it."""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tdro.demo import docstrings
from tdro.demo.manuals import readme_sections, topic_sections
from tdro.demo.sources import Package, stable_hash
from tdro.demo.syntax import Function, Module

MAX_CHARACTERS = 1000
MAX_QUERY_CHARACTERS = 300
_CHORES = re.compile(
    r"todo|error:|fixme|xxx|hack|type:|noqa|pragma|fmt:|pylint|mypy|pyright|ruff|copied from|copyright|see (https?|#)",
    re.I,
)


@dataclass(frozen=True, order=True)
class Pair:
    """A query, and the title and text of the passage that answers it."""

    query: str
    title: str
    text: str


def function_code(package: Package, modules: Sequence[Module]) -> Iterator[Pair]:
    """Pair what a function does with its code."""
    for function in _functions(modules):
        if not _odd(function) and "NotImplementedError" not in function.code:
            yield Pair(docstrings.summary(function.doc), "", function.code)


def signature_doc(package: Package, modules: Sequence[Module]) -> Iterator[Pair]:
    """Pair a signature with the documentation of the function."""
    for function in _functions(modules):
        if _odd(function) and not function.signature.endswith("()"):
            yield Pair(function.signature, "", docstrings.prose(function.doc))


def parameter_doc(package: Package, modules: Sequence[Module]) -> Iterator[Pair]:
    """Pair "NAME parameter of FUNCTION" with the description of that parameter."""
    for function in _functions(modules):
        shown = function.qualname.removesuffix(".__init__")
        for name, text in docstrings.parameters(function.doc):
            if len(name) > 1 and name not in {"args", "kwargs", "self"}:
                yield Pair(f"{name} parameter of {shown}", "", text)


def error_code(package: Package, modules: Sequence[Module]) -> Iterator[Pair]:
    """Pair an error message with the function that raises it; the message is blotted out of the code."""
    for function in _functions(modules):
        for error in function.errors if _odd(function) else ():
            words = re.findall(r"[A-Za-z]{2,}", error.message)
            if len(words) >= 4 and "(...)" in error.code[: MAX_CHARACTERS - 50]:
                yield Pair(f"{error.exception}: {docstrings.plain(error.message)}", "", error.code)
                break


def class_doc(package: Package, modules: Sequence[Module]) -> Iterator[Pair]:
    """Pair the words of a class name with its documentation."""
    for module in modules:
        for found in module.classes:
            yield Pair(split_name(found.name), "", docstrings.prose(found.doc))


def comment_code(package: Package, modules: Sequence[Module]) -> Iterator[Pair]:
    """Pair a comment with the lines of code below it."""
    for function in _functions(modules):
        for comment in function.comments:
            if len(comment.text.split()) >= 4 and not _CHORES.match(comment.text) and not _is_code(comment.text):
                yield Pair(docstrings.plain(comment.text), "", comment.code)


def example_code(package: Package, modules: Sequence[Module]) -> Iterator[Pair]:
    """Pair the sentence above a worked example with the example."""
    for doc in _docs(modules):
        for lead, session in docstrings.examples(doc):
            if lead[:1].isalpha():
                yield Pair(lead, "", session)


def related_doc(package: Package, modules: Sequence[Module]) -> Iterator[Pair]:
    """Pair what a function does with the documentation of one that it names under See Also."""
    known = {function.name: docstrings.prose(function.doc) for function in _functions(modules) if function.doc}
    for function in _functions(modules):
        for name, description in docstrings.related(function.doc):
            if name != function.name:
                query = f"like {function.name}: {docstrings.summary(function.doc)}"
                yield Pair(query, "", known.get(name, description))


def manual_section(package: Package, modules: Sequence[Module]) -> Iterator[Pair]:
    """Pair the headings of a package's README with the text below them, its summary with the introduction."""
    for section in readme_sections(package.readme):
        if section.heading.lower() in {"", package.name}:
            yield Pair(f"{package.name}: {package.summary}", package.name, section.text)
        else:
            yield Pair(f"{package.name} {section.heading}", package.name, section.text)


def topic_pairs(topics: Mapping[str, str]) -> Iterator[Pair]:
    """Pair the headings of the language reference with the text below them."""
    for name, text in topics.items():
        for section in topic_sections(text):
            yield Pair(section.heading, name, section.text)


def example_reference(package: Package, modules: Sequence[Module]) -> Iterator[Pair]:
    """Pair what a user types in an example with the reference entry of the function the example is for."""
    for function in _functions(modules):
        typed = (docstrings.typed_code(session) for _, session in docstrings.examples(function.doc))
        code = next((text for text in typed if "(" in text and "import" not in text), "")
        if not function.name.startswith("_"):
            yield Pair(code, "", f"{function.signature}\n{docstrings.prose(function.doc)}")


def contents(package: Package, modules: Sequence[Module]) -> Iterator[Pair]:
    """Pair what a module or class is for with the list of what is in it."""
    for module in modules:
        for scope, doc in [("", module.doc), *((f"{found.name}.", found.doc) for found in module.classes)]:
            named = [(found.name, found.doc) for found in module.classes if not scope]
            named += [(function.name, function.doc) for function in module.functions if function.scope == scope]
            lines = [f"{name}: {docstrings.summary(text)}".rstrip(": ") for name, text in named if name[0] != "_"]
            lines = list(dict.fromkeys(lines))
            described = sum(": " in line for line in lines)
            if described and len(lines) >= 2:
                yield Pair(docstrings.summary(doc) if described >= 2 else "", "", "\n".join(lines))


@dataclass(frozen=True)
class Kind:
    """One kind of pair: how to make it, how many rows at most, and the fewest words of a query."""

    name: str
    make: Callable[[Package, Sequence[Module]], Iterator[Pair]]
    most: int
    words: int = 3


TRAINING = (
    Kind("comment_code", comment_code, 3000, words=4),
    Kind("function_code", function_code, 2500),
    Kind("parameter_doc", parameter_doc, 2500),
    Kind("signature_doc", signature_doc, 1600, words=1),
    Kind("error_code", error_code, 1200, words=5),
    Kind("class_doc", class_doc, 900, words=2),
    Kind("example_code", example_code, 700, words=4),
    Kind("manual_section", manual_section, 500, words=1),
    Kind("related_doc", related_doc, 300),
)
EVALUATION = (
    Kind("code_search", function_code, 3000),
    Kind("example_search", example_reference, 2000, words=1),
    Kind("contents_search", contents, 1500),
)


def split_name(name: str) -> str:
    """Split a name in camel case or with underscores into words.

    Example:
        >>> split_name("HTTPConnectionPool"), split_name("_base_loader2")
        ('HTTP Connection Pool', 'base loader2')
    """
    return " ".join(re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", name))


def _functions(modules: Sequence[Module]) -> Iterator[Function]:
    """Yield all functions and methods."""
    return (function for module in modules for function in module.functions)


def _docs(modules: Sequence[Module]) -> Iterator[str]:
    """Yield the docstrings of modules, classes and functions."""
    for module in modules:
        yield module.doc
        yield from (found.doc for found in module.classes)
        yield from (found.doc for found in module.functions)


def _odd(function: Function) -> bool:
    """Divide the functions in two halves: one serves function_code, the other signature_doc and error_code."""
    return stable_hash(function.qualname) % 2 == 1


def _is_code(text: str) -> bool:
    """Tell commented-out code from a sentence."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return bool(re.search(r"[=({\[,\\]$|^\s*(if|for|while|return|def|class|elif|else)\b.*:$|\w+\(.*\)$", text))
    return True
