"""Write datasets in another layout, row by row, and tell what did not come along."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tdro.data.layouts import WrittenLayout
from tdro.data.reading import Scan
from tdro.data.records import Row
from tdro.data.writing import Written, check_target, write_dataset
from tdro.errors import ConfigError, DataError

_SHOWN = 20  # bad records that are kept with what is wrong with them


@dataclass(slots=True)
class Conversion:
    """What became of some sources.

    Args:
        layouts: Source -> its layout.
        written: Rows and records written, and what the new layout has no room for.
        unread: Columns, and fields of passages, of the sources that have no place in a row.
        bad: How many records were left out because something is wrong with them.
        problems: What is wrong with the first of them.
    """

    layouts: dict[str, str] = field(default_factory=dict)
    written: Written = field(default_factory=Written)
    unread: tuple[str, ...] = ()
    bad: int = 0
    problems: list[DataError] = field(default_factory=list)


def convert(
    sources: Sequence[str | Path],
    layout: WrittenLayout,
    out: str | Path,
    *,
    name: str,
    max_rows: int | None = None,
    seed: int = 0,
    negatives: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Conversion:
    """Read sources, of any forms and layouts, and write their rows as one dataset. Memory does not grow with the rows.

    Args:
        sources: Files, folders and addresses, as for `read_dataset`.
        layout: One of `WrittenLayout`.
        out: File or folder that is written; it appears when it is complete.
        name: The dataset's name; it starts the query ids that are made where a source has none.
        max_rows: Convert a uniform random sample of this many rows; None converts all.
        seed: Seed of the sample.
        negatives: Keep the first so many negatives of each row.
        skip_bad: Leave out records that something is wrong with; otherwise the first one ends the conversion.
        progress: Called now and then with the number of rows read.

    Returns:
        What was read, written, left out and lost.

    Raises:
        DataError: A record is bad and `skip_bad` false, a file cannot be read to its end, or the layout cannot hold
            a row; nothing is written.
        ConfigError: The name does not fit the layout, or is that of a source.
    """
    target = check_target(out, layout)
    for source in sources:
        if Path(source).exists() and target.exists() and target.samefile(source):
            raise ConfigError("a source would be overwritten", where=out, do="write to another name")
    scan = Scan(name, sources, max_rows=max_rows, seed=seed)
    conversion = Conversion()
    made = re.compile(rf"{re.escape(name)}-\d+")
    made_ids = 0

    def rows() -> Iterator[Row]:
        """Yield the good rows, and count the others."""
        nonlocal made_ids
        for number, (_, found) in enumerate(scan, start=1):
            if progress is not None and number % 1000 == 0:
                progress(number)
            if isinstance(found, DataError):
                if not skip_bad or scan.cut_short:
                    raise found
                conversion.bad += 1
                if len(conversion.problems) < _SHOWN:
                    conversion.problems.append(found)
                continue
            made_ids += made.fullmatch(found.query_id) is not None
            yield found

    conversion.written = write_dataset(rows(), target, layout, negatives=negatives)
    lost = conversion.written.lost
    lost["query ids"] -= min(made_ids, lost["query ids"])
    conversion.layouts, conversion.unread = scan.layouts, tuple(sorted(scan.unread))
    return conversion
