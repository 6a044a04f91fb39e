"""The errors a user can meet: what is wrong, where, the value seen, what to do."""


class TdroError(Exception):
    """Report one problem a user can act on.

    The message is one block of up to four lines; the command line prints it without a traceback
    and ends with `exit_code`.

    Args:
        what: What is wrong, one sentence.
        where: File and line (`train/nq.jsonl:12:query`), option (`weights.step_size`) or dataset.
        saw: The offending value; long values are cut.
        do: What the user can do about it.

    Example:
        >>> print(TdroError("query is empty", where="nq.jsonl:3:query", saw="", do="remove the row"))
        query is empty
          where: nq.jsonl:3:query
          saw:   ''
          do:    remove the row
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object = None, saw: object = None, do: str | None = None) -> None:
        self.what, self.where, self.saw, self.do = what, where, saw, do
        lines = [what]
        if where is not None:
            lines.append(f"  where: {where}")
        if saw is not None:
            lines.append(f"  saw:   {_short(saw)}")
        if do is not None:
            lines.append(f"  do:    {do}")
        super().__init__("\n".join(lines))


class ConfigError(TdroError):
    """A study file, an override or a weights file says something that cannot be."""


class DataError(TdroError):
    """A dataset or an evaluation set cannot be used as it is."""


class CheckpointError(TdroError):
    """A checkpoint or a run folder does not belong to this study, or is damaged."""


class EnvironmentProblem(TdroError):
    """The machine lacks something: a package, a device, disk space, write rights."""

    exit_code = 3


def _short(value: object, limit: int = 200) -> str:
    """Show a value in one line, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
