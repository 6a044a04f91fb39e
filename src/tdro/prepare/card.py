"""A data card in Markdown: what a mixture is made of, written from the result of a check."""

from collections.abc import Iterable

from tdro.prepare.check import CheckResult
from tdro.prepare.dataset_report import ROLES, DatasetReport
from tdro.prepare.findings import KINDS

_SHOWN_OVERLAPS = 30
_CUT = 200  # characters of a sample text


def card_of(result: CheckResult) -> str:
    """Write the data card of a study.

    Args:
        result: What `check` found.

    Returns:
        Markdown: totals, sources, sizes, languages, lengths, instructions, overlap, findings, sample rows, and how the
        card was made.
    """
    parts = [
        f"# Data card: {_plain(result.study)}",
        _totals(result),
        "## Sources",
        _table(["dataset", "files", "layout", "content", "license", "category"], map(_source, result.datasets)),
        "The content is a hash of the bytes of the files.",
        "## Sizes",
        _table(
            ["dataset", "rows", "distinct queries", "positives per row", "negatives per row", "share of the rows"],
            (_size(report, result) for report in result.datasets),
        ),
        "## Languages",
        _table(["dataset", "queries", "positives"], map(_languages, result.datasets)),
        "Of a sample; ? where a text is too short to tell.",
        "## Lengths",
        _table(
            ["dataset", *(f"{role}: median / 95 % / longest / cut" for role in ROLES)], map(_lengths, result.datasets)
        ),
        f"In {result.unit}, instruction included, of a seeded sample. Cut: the share of texts that training shortens.",
        "## Instructions",
        _table(["dataset", "instruction of its queries"], map(_instruction, result.datasets)),
        "## Overlap",
        _overlap(result),
        "## Findings",
        _findings(result),
        "## Sample rows",
        *(_samples(report) for report in result.datasets if report.samples),
        f"---\nWritten by `tdro check` {result.version} on {result.date}.",
    ]
    return "\n\n".join(parts) + "\n"


def languages_in_words(shares: dict[str, float], most: int = 3) -> str:
    """Write the most frequent languages with their shares; below half a per cent none is written.

    Example:
        >>> languages_in_words({"en": 0.9, "fr": 0.1})
        'en 90 %, fr 10 %'
    """
    largest = sorted(shares.items(), key=lambda item: -item[1])[:most]
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in largest if share >= 0.005)


def lengths_in_words(report: DatasetReport, role: str) -> str:
    """Write the lengths of a role's texts: median / 95th percentile / longest / share that is cut."""
    lengths = report.lengths.get(role)
    if lengths is None:
        return ""
    cut = "" if lengths.cut is None else f" / {100 * lengths.cut:.1f} %"
    return f"{lengths.median:g} / {lengths.p95:.0f} / {lengths.longest:,}{cut}"


def _totals(result: CheckResult) -> str:
    """Say how much there is."""
    rows = sum(report.rows for report in result.datasets)
    positives = sum(report.positives for report in result.datasets)
    negatives = sum(report.negatives for report in result.datasets)
    return (
        f"{len(result.datasets)} datasets, {rows:,} rows with {positives:,} positives and {negatives:,} negatives; "
        f"{result.total('error'):,} errors, {result.total('warning'):,} warnings and {result.total('note'):,} notes."
    )


def _source(report: DatasetReport) -> list[str]:
    """Where a dataset is from."""
    files = ", ".join(report.paths)
    layout = ", ".join(dict.fromkeys(report.layouts.values()))
    return [
        report.name,
        files,
        layout,
        f"`{report.content}`" if report.content else "",
        report.license or "not given",
        report.category,
    ]


def _size(report: DatasetReport, result: CheckResult) -> list[str]:
    """How large a dataset is."""
    total, rows = sum(other.rows for other in result.datasets), report.rows
    if not rows:
        return [report.name, "0", "", "", "", ""]
    negatives = f"{report.negatives / rows:.2f} ({report.fewest_negatives} to {report.most_negatives})"
    share = f"{100 * rows / total:.1f} %"
    return [
        report.name,
        f"{rows:,}",
        f"{report.distinct_queries:,}",
        f"{report.positives / rows:.2f}",
        negatives,
        share,
    ]


def _languages(report: DatasetReport) -> list[str]:
    """Which languages a dataset is in."""
    return [report.name, *(languages_in_words(report.languages.get(role, {}), 5) for role in ROLES[:2])]


def _lengths(report: DatasetReport) -> list[str]:
    """How long the texts of a dataset are."""
    return [report.name, *(lengths_in_words(report, role) for role in ROLES)]


def _instruction(report: DatasetReport) -> list[str]:
    """Which instruction a dataset's queries get."""
    none = f"none (known for it: {report.suggestion})" if report.suggestion else "none"
    return [report.name, report.instruction or none]


def _overlap(result: CheckResult) -> str:
    """What datasets share."""
    if not result.overlaps:
        return "No two datasets share a query or a passage."
    largest = sorted(result.overlaps, key=lambda overlap: -(overlap.pairs + overlap.queries + overlap.passages))
    rows = ([o.first, o.second, f"{o.queries:,}", f"{o.pairs:,}", f"{o.passages:,}"] for o in largest[:_SHOWN_OVERLAPS])
    left = len(largest) - _SHOWN_OVERLAPS
    more = f"\n\n{left} more pairs of datasets share less." if left > 0 else ""
    return _table(["dataset", "and", "queries", "query with the same positives", "passages"], rows) + more


def _findings(result: CheckResult) -> str:
    """What the check found."""
    if not result.counts:
        return "None."
    rows = (
        [KINDS[code].level, dataset, KINDS[code].what, f"{number:,}"]
        for (dataset, code), number in result.counts.items()
    )
    return _table(["level", "dataset", "what", "how often"], rows)


def _samples(report: DatasetReport) -> str:
    """A few rows of a dataset."""
    lines = [f"### {_plain(report.name)}"]
    for query, positive, negative in report.samples:
        lines.append(f"- query: {_plain(query[:_CUT])}\n  - positive: {_plain(positive[:_CUT])}")
        if negative:
            lines[-1] += f"\n  - negative: {_plain(negative[:_CUT])}"
    return "\n".join(lines)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Write a text in one line without signs that Markdown or HTML would take as its own."""
    for sign, instead in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("*", "\\*"), ("[", "\\["), ("#", "\\#")):
        text = text.replace(sign, instead)
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
