"""A comparison in words and tables: for the screen, as Markdown and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tdro.evaluation.compare import Contrast, Example, Found, Line

Examples = tuple[tuple["Example", ...], tuple["Example", ...]]
"""Queries that gain most, and those that lose most."""
_SNIPPET = 90  # characters of a passage that are shown


def show(contrasts: "Sequence[Contrast]", examples: Sequence[Examples], level: float) -> None:
    """Print tables, verdicts and examples.

    Args:
        contrasts: What was found.
        examples: Of each contrast.
        level: Of significance.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    for contrast, queries in zip(contrasts, examples, strict=True):
        header, rows = _cells(contrast, level)
        table = Table(*header, box=None, header_style="bold", title=_title(contrast), title_justify="left")
        for column in table.columns[1:]:
            column.justify, column.no_wrap = "right", True
        for row in rows:
            table.add_row(*map(Text, row), style="bold" if row[0] == "mean" else None)
        console.print(table)
        console.print(Text(verdict(contrast, level)), soft_wrap=not console.is_terminal)
        for heading, gone in zip(_headings(contrast), queries, strict=True):
            if gone:
                console.print(f"\n{heading}", markup=False, style="bold")
                for example in gone:
                    console.print(Text("\n".join(_example_lines(contrast, example))), no_wrap=True, overflow="ellipsis")
        console.print()


def markdown(contrasts: "Sequence[Contrast]", examples: Sequence[Examples], level: float) -> str:
    """Write tables, verdicts and examples as Markdown.

    Args:
        contrasts: What was found.
        examples: Of each contrast.
        level: Of significance.

    Returns:
        The text.
    """
    blocks = []
    for contrast, queries in zip(contrasts, examples, strict=True):
        header, rows = _cells(contrast, level)
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        blocks += [f"## {_plain(_title(contrast))}", _plain(verdict(contrast, level))]
        blocks.append(
            "\n".join(f"| {' | '.join(cell if cell[:3] == '---' else _plain(cell) for cell in row)} |" for row in lines)
        )
        for heading, gone in zip(_headings(contrast), queries, strict=True):
            if gone:
                blocks.append(f"### {_plain(heading)}")
                blocks.append("\n".join(line for example in gone for line in _bullets(contrast, example)))
    return "\n\n".join(blocks) + "\n"


def as_json(contrasts: "Sequence[Contrast]", examples: Sequence[Examples], level: float) -> list[dict[str, Any]]:
    """Turn what was found into plain values; scores as they are, not times 100.

    Args:
        contrasts: What was found.
        examples: Of each contrast.
        level: Of significance.

    Returns:
        An object per contrast.
    """
    return [
        {
            "measure": contrast.measure,
            "first": contrast.first.name,
            "second": contrast.second.name,
            "verdict": verdict(contrast, level),
            "mean": _line(contrast.mean),
            "tasks": [_line(line) for line in contrast.tasks],
            "parts": [_line(line) for line in contrast.parts],
            "helped": [asdict(example) for example in helped],
            "hurt": [asdict(example) for example in hurt],
        }
        for contrast, (helped, hurt) in zip(contrasts, examples, strict=True)
    ]


def verdict(contrast: "Contrast", level: float) -> str:
    """Say in plain words what a comparison amounts to; honest when it is nothing.

    A difference of the mean is clear when its interval excludes 0 and its adjusted p is at most the level.

    Args:
        contrast: What was found.
        level: Of significance.

    Returns:
        One to four sentences.
    """
    first, second, mean = contrast.first.name, contrast.second.name, contrast.mean
    difference = mean.test.difference
    clear = difference.is_clear and _is_significant(mean, level)
    better = "better" if difference.mean > 0 else "worse"
    said = f"{second} is {better} than {first}" if clear else f"No clear difference between {first} and {second}"
    if clear and _is_within_seeds(mean):
        said += ", but by less than the seed spread"
    queries = sum(line.test.difference.queries for line in contrast.tasks)
    over = (
        f"{queries} {_noun(queries, 'query', 'queries')} of {len(contrast.tasks)} {_noun(len(contrast.tasks), 'task')}"
    )
    interval = f"95 % interval {_points(difference.low)} to {_points(difference.high)}, p {_equals(mean.p_holm)}"
    sentences = [f"{said}: {_points(difference.mean)} points of {contrast.measure} ({interval}, over {over})."]
    if len(contrast.tasks) > 1:
        sentences.append(_of_tasks(contrast, level))
    results = [result for side in (contrast.first, contrast.second) for seed in side.seeds for result in seed.values()]
    recalls = [found["recall"] for result in results if "recall" in (found := result.summary.get("search", {}))]
    if recalls:
        sentences.append(f"The search was approximate, its recall at least {min(recalls):.1%}.")
    return " ".join([*sentences, _of_seeds(contrast)])


def _of_tasks(contrast: "Contrast", level: float) -> str:
    """Say on how many tasks the difference is significant."""
    clear = [line for line in contrast.tasks if _is_significant(line, level)]
    better = [line.name for line in clear if line.test.difference.mean > 0]
    worse = [line.name for line in clear if line.test.difference.mean < 0]
    counts = " and ".join(
        f"{word} on {len(names)}" + (f" ({', '.join(names)})" if names else "")
        for word, names in (("better", better), ("worse", worse))
    )
    return f"Of {len(contrast.tasks)} tasks it is {counts} after Holm at level {level:g}."


def _of_seeds(contrast: "Contrast") -> str:
    """Say how the difference compares with what another training seed would change."""
    seeds = len(contrast.first.seeds), len(contrast.second.seeds)
    noise = contrast.mean.seed_noise
    if noise is None:
        return "One run of each side: what another training seed would change is not known."
    basis = f"standard deviation between single runs {100 * noise:.2f} points, from {seeds[0]} and {seeds[1]} seeds"
    if _is_within_seeds(contrast.mean):
        return f"The difference is within the seed spread ({basis}): single runs could come out the other way."
    return f"The difference exceeds the seed spread ({basis})."


def _is_within_seeds(mean: "Line") -> bool:
    """Whether the difference is at most its standard deviation over single runs."""
    return mean.seed_noise is not None and abs(mean.test.difference.mean) <= mean.seed_noise


def _cells(contrast: "Contrast", level: float) -> tuple[list[str], list[list[str]]]:
    """The table of a contrast: parts below their task, the mean last."""
    first, second = contrast.first.name, contrast.second.name
    header = [
        "task",
        "queries",
        first,
        second,
        "difference",
        "95 % interval",
        "p random.",
        "p Holm",
        "p t",
        "d_z",
        "+/=/-",
    ]
    seeds = contrast.mean.seed_noise is not None
    rows = []
    for line in contrast.tasks:
        rows.append(_row(line, level, line.name, seeds))
        for part in contrast.parts:
            task, _, name = part.name.partition("/")
            if task == line.name:
                rows.append(_row(part, level, f"  {name}", seeds))
    if len(contrast.tasks) > 1:
        rows.append(_row(contrast.mean, level, "mean", seeds))
    return header + (["sd of seeds"] if seeds else []), rows


def _row(line: "Line", level: float, name: str, seeds: bool) -> list[str]:
    """One row; a part gets no p, because none is adjusted for it."""
    test, difference = line.test, line.test.difference
    is_part = line.p_holm is None
    return [
        name,
        str(difference.queries),
        f"{100 * line.first:.2f}",
        f"{100 * line.second:.2f}",
        _points(difference.mean),
        f"{_points(difference.low)} to {_points(difference.high)}",
        "" if is_part else _p(test.p_randomisation),
        "" if is_part else _p(line.p_holm) + (" *" if _is_significant(line, level) else ""),
        "" if is_part else _p(test.p_t),
        "-" if test.effect is None else f"{test.effect:+.2f}",
        f"{test.wins}/{test.ties}/{test.losses}",
        *([" / ".join(_spread(spread) for spread in (line.first_spread, line.second_spread))] if seeds else []),
    ]


def _is_significant(line: "Line", level: float) -> bool:
    """Whether the adjusted p is at most the level."""
    return line.p_holm is not None and line.p_holm <= level


def _line(line: "Line") -> dict[str, Any]:
    """A line as plain values."""
    return {**asdict(line), "seed_noise": line.seed_noise}


def _title(contrast: "Contrast") -> str:
    """Say what is compared."""
    return f"{contrast.second.name} against {contrast.first.name}, {contrast.measure} x 100"


def _headings(contrast: "Contrast") -> tuple[str, str]:
    """The headings of the examples."""
    return f"Where {contrast.second.name} gains most", f"Where {contrast.second.name} loses most"


def _example_lines(contrast: "Contrast", example: "Example") -> Iterator[str]:
    """A query with its scores and what both sides found."""
    yield f"{_change(example)}  {_one_line(example.query)}"
    for name, found in _sides(contrast, example):
        yield f"  {name}"
        for document in found:
            yield f"    {_rank(document)} {_one_line(document.document_id)}: {_snippet(document)}"


def _bullets(contrast: "Contrast", example: "Example") -> Iterator[str]:
    """The same as nested lists."""
    yield f"- {_plain(_change(example))} **{_plain(_one_line(example.query))}**"
    for name, found in _sides(contrast, example):
        yield f"  - {_plain(name)}"
        for document in found:
            yield f"    - {_rank(document)} {_plain(_one_line(document.document_id))}: {_plain(_snippet(document))}"


def _sides(contrast: "Contrast", example: "Example") -> "tuple[tuple[str, tuple[Found, ...]], ...]":
    """What each side found."""
    return (contrast.first.name, example.first_found), (contrast.second.name, example.second_found)


def _change(example: "Example") -> str:
    """Name a query and its scores."""
    return f"{example.task} {example.query_id}: {100 * example.first:.1f} -> {100 * example.second:.1f}"


def _rank(document: "Found") -> str:
    """A rank; relevant documents are marked."""
    rank = "not found" if document.rank is None else str(document.rank)
    return f"{rank} [relevant]" if document.relevant else rank


def _snippet(document: "Found") -> str:
    """The beginning of a document."""
    text = _one_line(f"{document.title.rstrip(' .')}. {document.text}" if document.title else document.text)
    return text if len(text) <= _SNIPPET else text[: _SNIPPET - 3] + "..."


def _one_line(text: str) -> str:
    """Write a text in one line."""
    return " ".join(text.split())


def _plain(text: str) -> str:
    """Keep Markdown from reading a text as markup."""
    for sign in "\\`*_|<[]":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("  ", "&nbsp;&nbsp;")


def _points(score: float) -> str:
    """A difference times 100."""
    return f"{100 * score:+.2f}"


def _spread(spread: float | None) -> str:
    """A standard deviation times 100."""
    return "-" if spread is None else f"{100 * spread:.2f}"


def _p(p: float | None) -> str:
    """A p-value."""
    return "-" if p is None else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _equals(p: float | None) -> str:
    """A p-value in a sentence."""
    return _p(p).replace("<", "< ") if p is not None and p < 0.0001 else f"= {_p(p)}"


def _noun(count: int, one: str, many: str = "") -> str:
    """The noun for a count."""
    return one if count == 1 else many or f"{one}s"
