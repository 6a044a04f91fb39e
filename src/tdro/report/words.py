"""Numbers and lists as the report writes them."""

from collections.abc import Iterable

MINUS, NONE = "\u2212", "\u2013"
"""The sign of negative numbers, and what stands where there is no value."""


def points(score: float) -> str:
    """Write a difference of scores in points, with its sign.

    Example:
        >>> points(0.0123)
        '+1.23'
    """
    return f"{100 * score:+.2f}".replace("-", MINUS)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with some significant digits; a dash where there is none.

    Example:
        >>> number(0.05), number(1234.5), number(2.0), number(0.0), number(None) == NONE
        ('0.0500', '1,234', '2.00', '0', True)
    """
    if value is None or value != value:
        return NONE
    text = f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}" if value else "0"
    return text.rstrip(".").replace("e-0", "e-").replace("-", MINUS)


def percent(share: float, digits: int = 0) -> str:
    """Write a share.

    Example:
        >>> percent(0.123), percent(0.0123, 1)
        ('12 %', '1.2 %')
    """
    return f"{100 * share:.{digits}f} %"


def p_value(p: float | None) -> str:
    """Write a p-value."""
    return NONE if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def duration(seconds: float) -> str:
    """Write seconds as people say them.

    Example:
        >>> duration(4.2), duration(75), duration(7300)
        ('4 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def noun(count: int, one: str, many: str = "") -> str:
    """Write a count with its noun.

    Example:
        >>> noun(1, "query", "queries"), noun(2000, "query", "queries")
        ('1 query', '2,000 queries')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(names: Iterable[str], most: int = 6) -> str:
    """Write some names and how many more there are.

    Example:
        >>> listed("ab"), listed("abcd", 2)
        ('a and b', 'a, b and 2 more')
    """
    every = list(names)
    if len(every) > most:
        return f"{', '.join(every[:most])} and {len(every) - most} more"
    return " and ".join(filter(None, [", ".join(every[:-1]), *every[-1:]]))


def shorten(text: str, most: int) -> str:
    """Write a text in one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def measure_name(measure: str) -> str:
    """Write the name of a measure as people do.

    Example:
        >>> measure_name("ndcg@10")
        'nDCG@10'
    """
    return measure.replace("ndcg", "nDCG").replace("acc", "Acc")
