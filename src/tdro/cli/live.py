"""What a person sees while a study runs: a bar and live weights in a terminal, plain lines elsewhere, or JSON lines."""

import json
import time
from collections.abc import Mapping
from typing import IO, Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tdro.cli.display import clock, measure_name

PLAIN_INTERVAL = 10.0
"""Seconds between progress lines where there is no terminal."""
MOST_DATASETS = 12
"""Datasets in the live table, if the terminal is high enough."""
_NARROW, _MEDIUM = 56, 76  # columns of a terminal below which the bar, and below which the speed, is left out
_BAR = 60  # columns of the longest bar
_STAGE = 10  # columns of the name of a stage
_SMOOTH = 0.2  # share of the newest value in what is shown of losses and speed

Mode = Literal["full", "quiet", "json"]


class Display:
    """Shows the events of a journal while they happen.

    Args:
        file: Where to write; bars are drawn only in a terminal.
        mode: full; quiet: nothing; json: every event as a line of JSON.
        batch_sizes: Stage -> queries of a step, for the speed.

    Attributes:
        console: Where to.
        mode: As given.
        where: What was being done last: `weights, 12 of 80`.
    """

    def __init__(self, file: IO[str], mode: Mode = "full", batch_sizes: Mapping[str, int] | None = None) -> None:
        self._file, self.mode, self._batch_sizes = file, mode, dict(batch_sizes or {})
        self.console = Console(file=file, highlight=False, soft_wrap=not file.isatty(), quiet=mode != "full")
        self._live: Live | None = None
        self._bar: _Bar | None = None
        self._losses: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._last_line = 0.0
        self.where = "the beginning"

    def __enter__(self) -> "Display":
        if self.console.is_terminal and self.mode == "full":
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bar = None
            self._live.stop()

    def note(self, text: str, stage: str = "run") -> None:
        """Show one line and keep it."""
        if self.mode == "json":
            self._write({"event": "note", "stage": stage, "text": text})
        self.console.print(text, markup=False)

    def show(self, event: dict[str, Any]) -> None:
        """Show an event of the journal."""
        if self.mode == "json":
            self._write(event)
        kind, stage = event["event"], event["stage"]
        if kind == "stage_started":
            self._losses, self._weights, self._bar = {}, {}, None
            if event["from_step"]:
                self._keep(stage, f"goes on at step {event['from_step']} of {event['steps']}")
        elif kind == "step":
            self._step(event)
        elif kind == "progress":
            about = str(event.get("dataset", ""))
            self._advance(stage, event["done"], event["total"], about, None)
        elif said := _sentence(event):
            if kind == "stage_finished":
                self._losses, self._bar = {}, None
            self._keep(stage, said)

    def _keep(self, stage: str, text: str) -> None:
        """Show a line about a stage and keep it; what is longer than a terminal is wide goes on under the text."""
        if not self.console.is_terminal or len(stage) > _STAGE or self.console.width < _NARROW:
            self.console.print(f"{stage:{_STAGE}} {text}", markup=False)
            return
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_column(width=_STAGE)
        line.add_column(overflow="fold")
        line.add_row(stage, Text(text))
        self.console.print(line)

    def _write(self, event: dict[str, Any]) -> None:
        """Write an event as JSON."""
        print(json.dumps(event, ensure_ascii=False), file=self._file, flush=True)

    def _step(self, event: dict[str, Any]) -> None:
        """Show a training step."""
        for name, loss in event["losses"].items():
            self._losses[name] = (1 - _SMOOTH) * self._losses.get(name, loss) + _SMOOTH * loss
        if "weights" in event:
            self._weights = dict(zip(event["losses"], event["weights"], strict=True))
        stage = event["stage"]
        size = self._batch_sizes.get(stage.partition("/")[0], 0)
        loss = f"loss {event['loss']:.3f}"
        self._advance(stage, event["step"] + 1, event["steps"], loss, size, event["seconds_left"])

    def _advance(
        self, stage: str, done: int, total: int, about: str, batch_size: int | None, left: float | None = None
    ) -> None:
        """Move the bar, or write a line now and then."""
        if self._bar is None or (self._bar.stage, self._bar.total) != (stage, total) or done < self._bar.done:
            self._bar = _Bar(stage, total, batch_size)
        self._bar.move(done, about, left)
        self.where = f"{stage}, {done:,} of {total:,}"
        now = time.monotonic()
        ends = done == total and left is not None
        if not self._live and (now - self._last_line > PLAIN_INTERVAL or ends):
            self._last_line = now
            numbers = [self._bar.left, self._bar.speed, about, self._datasets_in_a_line()]
            self._keep(stage, "  ".join([f"{done}/{total}", *filter(None, numbers)]))

    def _datasets_in_a_line(self) -> str:
        """Name the highest and the lowest weights, or the mean losses."""
        if self._weights:
            names = _ends(sorted(self._weights, key=self._weights.__getitem__, reverse=True), 6)
            return "weights " + " ".join(f"{name} {self._weights[name]:.3f}" for name in names if name)
        if not self._losses:
            return ""
        return "mean " + " ".join(f"{name} {loss:.2f}" for name, loss in list(self._losses.items())[:6])

    def _render(self) -> Group:
        """Draw the bar and, under it, weights and losses of the datasets."""
        if self._bar is None:
            return Group()
        width, height = self.console.size
        line = self._bar.draw(width)
        return Group(line, self._table(min(MOST_DATASETS, height - 5))) if self._losses else Group(line)

    def _table(self, most: int) -> Table:
        """Draw the datasets with the highest weights and those with the lowest; with the highest losses without."""
        shown = self._weights or self._losses
        names = _ends(sorted(self._losses, key=lambda name: -shown.get(name, 0.0)), max(most, 3))
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("dataset", no_wrap=True, overflow="ellipsis")
        for column in [*(["weight", "x uniform"] if self._weights else []), "loss"]:
            table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
        for name in names:
            if name is None:
                table.add_row(f"... {len(self._losses) - len(names) + 1} more")
                continue
            weight = self._weights.get(name, 0.0)
            of_weights = [f"{weight:.4f}", f"{weight * len(self._weights):.2f}"] if self._weights else []
            table.add_row(name, *of_weights, f"{self._losses[name]:.3f}")
        return table


class _Bar:
    """How far a stage is.

    Args:
        stage: Its name.
        total: Steps, or texts, or what else is counted.
        batch_size: Queries of a step; None where no steps are counted.
    """

    def __init__(self, stage: str, total: int, batch_size: int | None) -> None:
        self.stage, self.total, self.batch_size = stage, total, batch_size
        self.done, self.about = 0, ""
        self._began, self._first, self._last = time.monotonic(), -1, time.monotonic()
        self._left: float | None = None
        self._per_unit: float | None = None

    def move(self, done: int, about: str, left: float | None) -> None:
        """Take up how far it is."""
        now = time.monotonic()
        if self._first < 0:
            self._first, self._began = done, now
        elif done > self.done:
            took = (now - self._last) / (done - self.done)
            self._per_unit = took if self._per_unit is None else (1 - _SMOOTH) * self._per_unit + _SMOOTH * took
        if left is None and done > self._first:
            left = (now - self._began) / (done - self._first) * (self.total - done)
        self.done, self.about, self._left, self._last = done, about, left, now

    @property
    def left(self) -> str:
        """Time that is left."""
        return "" if self._left is None else f"{clock(self._left)} left"

    @property
    def speed(self) -> str:
        """Queries per second."""
        if not self.batch_size or not self._per_unit:
            return ""
        return f"{self.batch_size / self._per_unit:.3g} queries/s"

    def draw(self, width: int) -> Table:
        """Draw it in one line of a terminal."""
        line = Table.grid(padding=(0, 1), expand=width < 2 * _BAR)
        cells: list[Any] = []

        def add(cell: Any, **options: Any) -> None:
            line.add_column(no_wrap=True, **options)
            cells.append(cell)

        add(self.stage, overflow="ellipsis", min_width=_STAGE, max_width=max(width // 4, _STAGE))
        if width >= _NARROW:
            bar = ProgressBar(total=max(self.total, 1), completed=self.done, width=None if width < 2 * _BAR else _BAR)
            add(bar, ratio=1)
        add(f"{self.done:,}/{self.total:,}", justify="right")
        add(self.left, justify="right")
        if width >= _MEDIUM and self.speed:
            add(self.speed, justify="right")
        if self.about:
            add(Text(self.about), overflow="ellipsis", max_width=max(width // 3, 10))
        line.add_row(*cells)
        return line


def _ends(names: list[str], most: int) -> list[str | None]:
    """Keep the first and the last of some names; None stands for what is left out between them."""
    if len(names) <= most:
        return list(names)
    half = (most - 1) // 2
    return [*names[: most - 1 - half], None, *names[len(names) - half :]]


def _sentence(event: dict[str, Any]) -> str:
    """Say what happened, where it is worth a line."""
    kind = event["event"]
    if kind == "watched":
        mark = ", the best so far" if event["best"] else ""
        return f"step {event['step'] + 1}: {100 * event['mean']:.2f} on the watched tasks{mark}"
    if kind == "stage_finished":
        main = event.get("main")
        result = f"  {measure_name(main)} {100 * event['scores'][main]:.2f}" if main else ""
        return f"done in {clock(event['seconds'])}{result}"
    if kind == "stage_skipped":
        return "finished before, skipped"
    if kind == "mined":
        rows, short = (f"{event[key]} row{'' if event[key] == 1 else 's'}" for key in ("rows", "short"))
        return (
            f"{event['dataset']}: {event['negatives']} for {event['mined']} of {rows}"
            f" in {clock(event['seconds'])}; {short} got fewer than asked, {event['none']} none"
        )
    return str(event["text"]) if kind == "note" else ""
