"""The report of a run: made from its folder, written as one HTML page without a network, and as Markdown."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tdro.errors import EnvironmentProblem
from tdro.files import write_text
from tdro.report.charts import NARROW, WIDE
from tdro.report.checks import data_section
from tdro.report.cost import cost_section
from tdro.report.document import Note, Report, Section
from tdro.report.health import health_section
from tdro.report.losses import losses_section
from tdro.report.markdown import as_markdown
from tdro.report.plan import advice_section, plan_section
from tdro.report.provenance import guide_section, provenance_section
from tdro.report.reading import RunFiles
from tdro.report.scores import Comparison, compare_models, scores_section
from tdro.report.verdict import headline, verdict_section
from tdro.report.weights import weights_section
from tdro.report.what_if import what_if_section
from tdro.report.words import listed, noun


@dataclass(frozen=True, slots=True)
class Written:
    """Where a report is, and its verdict in a few words."""

    page: Path
    text: Path
    headline: str


def write_report(folder: Path, output: Path | None = None) -> Written:
    """Write index.html and report.md for a run, finished or not.

    Args:
        folder: Run folder; only read, but for the report itself.
        output: Where the report goes; `report` in the run folder unless given.

    Returns:
        What was written.

    Raises:
        CheckpointError: It is no run folder.
        EnvironmentProblem: The report cannot be written.
    """
    report = make_report(folder)
    output = output or folder / "report"
    written = Written(output / "index.html", output / "report.md", report.headline)
    try:
        write_text(written.page, as_html(report))
        write_text(written.text, as_markdown(report))
    except OSError as error:
        do = "choose another folder with --output"
        raise EnvironmentProblem("report cannot be written", where=output, saw=str(error), do=do) from None
    return written


def make_report(folder: Path) -> Report:
    """Read a run folder and say what it shows.

    A section that damaged files keep from being made says so; the others are made all the same.

    Raises:
        CheckpointError: It is no run folder.
    """
    run = RunFiles(folder)
    comparison = _compared(run)
    sections = [
        _made(anchor, title, make)
        for anchor, title, make in (
            ("weights", "Weights", lambda: weights_section(run)),
            ("health", "Health of the weights", lambda: health_section(run)),
            ("losses", "Losses", lambda: losses_section(run)),
            ("plan", "Plan", lambda: plan_section(run)),
            ("advice", "Advice", lambda: advice_section(run)),
            ("scores", "Before and after", lambda: scores_section(run, comparison)),
            ("what-if", "What if?", lambda: what_if_section(run)),
            ("data", "Data: check and leaks", lambda: data_section(run)),
            ("cost", "Cost", lambda: cost_section(run)),
            ("provenance", "Provenance", lambda: provenance_section(run)),
            ("guide", "How to read this page", guide_section),
        )
    ]
    verdict = _made(
        "verdict", "Verdict", lambda: verdict_section(run, comparison)
    )  # last: it tells what was unreadable
    title = str(run.setting("name") or folder.resolve().name)
    return Report(title, _subtitle(run), headline(comparison), (verdict, *sections))


def as_html(report: Report) -> str:
    """Write a report as one page that needs neither files beside it nor a network.

    Texts from datasets and models are escaped, and the page's policy runs no script but its own.
    """
    import jinja2

    loader = jinja2.PackageLoader("tdro.report", "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_unbroken,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = resources.files("tdro.report") / "templates"
    style, script = ((files / name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("page.html.j2")
    return template.render(report=report, style=style, script=script, digest=digest, widths=(WIDE, NARROW))


def _unbroken(value: Any) -> Any:
    """Keep a number and its per cent sign on one line; what is markup already stays as it is."""
    return value.replace(" %", "\u00a0%") if type(value) is str else value


def _compared(run: RunFiles) -> Comparison:
    """Compare the models; where the files are damaged in a way nobody thought of, say so."""
    try:
        return compare_models(run)
    except Exception as error:  # results can be damaged in any way
        return Comparison((), {}, f"the results in evaluation/ cannot be read ({type(error).__name__}: {error})")


def _made(anchor: str, title: str, make: Callable[[], Section]) -> Section:
    """Make a section, or one that says why it could not be made."""
    try:
        return make()
    except Exception as error:  # files can be damaged in any way, and a page with a gap is better than none
        text = f"Files of this run are damaged or of another version ({type(error).__name__}: {error})."
        return Section(anchor, title, (Note("warning", "This section could not be made.", text),))


def _subtitle(run: RunFiles) -> str:
    """Say what the study is."""
    datasets, tasks = run.setting("data.datasets", {}), run.setting("evaluation.tasks", {})
    said = [noun(len(datasets), "dataset")] if datasets else []
    said += [f"{noun(len(tasks), 'evaluation task')} ({listed(tasks, 5)})"] if tasks else []
    base = str(run.setting("model.base", ""))
    return " · ".join([*said, *([f"base {base}"] if base else [])])
