"""Shell scripts as far as launching a training needs: variables, quotes, continuations, arrays, arithmetic.

Nothing is run. Every branch of a condition counts as taken, one after the other; what cannot be known without running
the script (other variables, other commands) stays in the text as `${NAME}` or `$(...)`.
"""

import ast
import fnmatch
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tdro.setup.released_words import ASSIGNED, Word, closing, lex

UNKNOWN_COMMAND = "$(...)"
"""Stands for what a command would have printed."""
_DOCUMENT = re.compile(
    r"^(?!.*\b(?:sbatch|qsub|srun|ssh|bash|sh)\b)(.*?)(?<!<)<<-?[ \t]*(['\"\\]?)(\w+)['\"]?(.*)\n"
    r"(?:.*\n)*?[ \t]*\3[ \t]*$",
    re.M,
)
_NAME = re.compile(r"[A-Za-z_]\w*|\d", re.ASCII)
_OPENING, _CLOSING = {"if", "for", "while", "until", "case"}, {"fi", "done", "esac"}
_BEFORE_COMMANDS = {"then", "do", "else", "elif", "{", "}", "!", "time", "exec", "nohup", "command"}
_DECLARING = {"export", "declare", "local", "readonly", "typeset"}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.floordiv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A simple command with its variables filled in.

    Attributes:
        words: Program and arguments.
        line: Where it begins, from 1.
        variables: What was set when it came.
    """

    words: tuple[str, ...]
    line: int
    variables: Mapping[str, str]


class Assignment(NamedTuple):
    """A variable that is set, or added to.

    Attributes:
        name: The variable.
        value: What it is set to, or what is added.
        adds: Whether it is added.
    """

    name: str
    value: str
    adds: bool


@dataclass(frozen=True)
class Script:
    """What a script launches.

    Attributes:
        commands: In their order.
        conditional: Assignments inside a condition or loop.
    """

    commands: tuple[Command, ...]
    conditional: tuple[Assignment, ...]


def read_script(text: str, path: Path, variables: Mapping[str, str] | None = None) -> Script:
    """Read a script.

    Args:
        text: The script.
        path: Where it is; `$0`, `$PWD` and `$(dirname "$0")` follow from it.
        variables: Set from outside, `1` being the first argument; an assignment of the script goes before.

    Raises:
        ConfigError: A quote or parenthesis is not closed.

    Example:
        >>> script = read_script('N=2\\nARGS+=" --x $((N * 8))"\\ntorchrun train.py $ARGS', Path("run.sh"))
        >>> script.commands[0].words
        ('torchrun', 'train.py', '--x', '16')
    """
    shell = _Shell(path, dict(variables or {}))
    for words in lex(_without_documents(text), path):
        shell.read(words)
    return Script(tuple(shell.commands), tuple(shell.conditional))


def _without_documents(text: str) -> str:
    """Blank out here-documents, which are files; those of a command that runs them are commands."""
    return _DOCUMENT.sub(lambda found: found[1] + found[4] + "\n" * found[0].count("\n"), text)


class _Shell:
    """Reads one command after the other and remembers variables."""

    def __init__(self, path: Path, variables: dict[str, str]) -> None:
        self._path = path
        self._variables = {"0": path.name, "PWD": str(path.parent), "BASH_SOURCE": str(path), **variables}
        self._arrays: dict[str, list[str]] = {}
        self._depth = 0
        self.commands: list[Command] = []
        self.conditional: list[Assignment] = []

    def read(self, words: list[Word]) -> None:
        """Take up a command: assignments, then what it launches."""
        while words and (words[0].bare in _OPENING | _CLOSING | _BEFORE_COMMANDS):
            keyword = words.pop(0).bare
            self._depth += (keyword in _OPENING) - (keyword in _CLOSING)
            if keyword in ("for", "case"):
                return
        declares = bool(words) and words[0].bare in _DECLARING
        if declares:
            words = [word for word in words[1:] if not word.bare.startswith("-")]
        while words and self._assign(words[0]):
            words = words[1:]
        if declares or not words:
            return
        filled = [text for word in words for text in self._fields(word)]
        if filled and filled[0] == "eval":
            again = lex(" ".join(filled[1:]), self._path)
            filled = [text for words in again for word in words for text in self._fields(word)]
        if filled:
            self.commands.append(Command(tuple(filled), words[0].line, dict(self._variables)))

    def _assign(self, word: Word) -> bool:
        """Set a variable, if the word says so."""
        found = ASSIGNED.match(word.bare)
        if found is None:
            return False
        name, adds = found[1], bool(found[2])
        if word.array is not None:
            items = [text for item in word.array for text in self._fields(item)]
            value = " ".join(items)
            self._arrays[name] = (self._arrays.get(name, []) if adds else []) + items
        else:
            rest = [(word.bare[found.end() :], ""), *word.pieces[1:]]
            value = "".join(text if quotes == "'" else self._fill(text) for text, quotes in rest)
            self._variables[name] = (self._variables.get(name, "") if adds else "") + value
        if self._depth:
            self.conditional.append(Assignment(name, value, adds))
        return True

    def _fields(self, word: Word) -> list[str]:
        """Fill in the variables of a word; unquoted ones are split at spaces."""
        fields = [""]
        kept = False
        for text, quotes in word.pieces:
            array = re.fullmatch(r"\$\{(\w+)\[[@*]\]\}", text)
            if text in ("$@", "$*", "${@}", "${*}"):
                items = [self._variables[str(n)] for n in range(1, 10) if str(n) in self._variables]
                fields[-1] += items[0] if items else ""
                fields += items[1:]
            elif array and array[1] in self._arrays:
                items = self._arrays[array[1]] or [""]
                fields[-1] += items[0]
                fields += items[1:]
            elif quotes or "$" not in text:
                kept = True
                fields[-1] += text if quotes == "'" else self._fill(text)
            else:
                value = self._fill(text)
                parts = value.split() or [""]
                if value[:1].isspace() and fields[-1]:
                    fields.append("")
                fields[-1] += parts[0]
                fields += parts[1:]
                if value[-1:].isspace() and fields[-1]:
                    fields.append("")
        return [text for text in fields if text] or ([""] if kept else [])

    def _fill(self, text: str) -> str:
        """Replace `$NAME`, `${...}`, `$((...))` and some `$(...)`."""
        out, i = "", 0
        while i < len(text):
            end = closing(text, i + 1) if text.startswith(("$(", "${"), i) else 0
            if end < 0:  # not closed, as in quotes of quotes
                return out + text[i:]
            if text.startswith("$((", i):
                out, i = out + self._calculate(text[i + 3 : end - 2]), end
            elif end:
                inner = text[i + 2 : end - 1]
                out, i = out + (self._run(inner) if text[i + 1] == "(" else self._parameter(inner)), end
            elif text[i] == "$" and (found := _NAME.match(text, i + 1)):
                out, i = out + self._value(found[0]), found.end()
            else:
                out, i = out + text[i], i + 1
        return out

    def _value(self, name: str) -> str:
        """Value of a variable, or `${NAME}` where it is not known."""
        if name in self._arrays:
            return " ".join(self._arrays[name])
        return self._variables.get(name, f"${{{name}}}")

    def _parameter(self, body: str) -> str:
        """Fill in what stands between `${` and `}`."""
        body = body.removesuffix("[0]")
        found = re.fullmatch(r"(\w+)(?:(:?[-=])(.*)|(%%?|##?)(.*))?", body, re.DOTALL)
        if found is None:
            return f"${{{body}}}"
        name, default, cut, pattern = found[1], found[3], found[4], found[5]
        if default is not None and not self._variables.get(name):
            return self._fill(default)
        value = self._value(name)
        return _cut(value, cut, self._fill(pattern)) if cut and name in self._variables else value

    def _calculate(self, expression: str) -> str:
        """Evaluate whole numbers with + - * / % and parentheses."""
        filled = self._fill(expression)
        filled = re.sub(r"[A-Za-z_]\w*", lambda name: self._variables.get(name[0], name[0]), filled)
        try:
            return str(_whole(ast.parse(filled.strip(), mode="eval").body))
        except (SyntaxError, ValueError, ZeroDivisionError):
            return UNKNOWN_COMMAND

    def _run(self, command: str) -> str:
        """Answer `dirname`, `basename`, `realpath` and `pwd`; nothing else is known without running it."""
        if found := re.fullmatch(r"\s*cd\s+(.+?)\s*(?:>[^&]*)?(?:&&|;)\s*pwd(?:\s+-P)?\s*", command, re.DOTALL):
            command = f"realpath {found[1]}"
        words = [text for words in lex(command, self._path) for word in words for text in self._fields(word)]
        if words and words[-1].startswith("$"):
            return UNKNOWN_COMMAND
        match words:
            case ["pwd"]:
                return self._variables["PWD"]
            case ["dirname", path]:
                return str(Path(path).parent) if path != self._path.name else str(self._path.parent)
            case ["basename", path]:
                return Path(path).name
            case ["realpath" | "readlink", *_, path]:
                return path
        return UNKNOWN_COMMAND


def _cut(value: str, cut: str, pattern: str) -> str:
    """Cut the shortest (`%`, `#`) or longest (`%%`, `##`) end or beginning that fits a pattern."""
    at_end = cut[0] == "%"
    places = range(len(value), -1, -1) if at_end else range(len(value) + 1)
    if len(cut) > 1:
        places = places[::-1]
    for i in places:
        if fnmatch.fnmatchcase(value[i:] if at_end else value[:i], pattern):
            return value[:i] if at_end else value[i:]
    return value


def _whole(node: ast.expr) -> int:
    """Evaluate an expression of whole numbers."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_whole(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_whole(left), _whole(right))
    raise ValueError("not arithmetic of whole numbers")
