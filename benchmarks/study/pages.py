"""Write docs/study-tables.md from the committed results: PYTHONPATH=benchmarks python -m study.pages."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from study.settings import CORE, GOALS, RESULTS, SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "study-tables.md"
INTRODUCTION = """# The study in numbers

Made from `benchmarks/results/study/` by `python -m study.pages`; what it means is in [the study](study.md).
nDCG@10 x 100, on the report half where nothing else is said. *out*: mean of six sets out of domain; *large*: those four
of them with more than a hundred queries in either half; *in*: four sets in domain; *all*: all ten.
"""
FURTHER = """Thought of after the core: three seeds, against uniform of the same seeds, Holm over these arms. Where
nothing else is said datasets are sampled by weight; *loss*: sampled uniformly, losses weighed; *cheap*: reference and
proxy of 50 steps, one negative; *capped*: none above twice its uniform share; *without*: uniform over the rest."""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page, with what there are results of."""
    found = {
        setting: json.loads((RESULTS / f"{setting}.json").read_text("utf-8"))
        for setting in SETTINGS
        if (RESULTS / f"{setting}.json").exists()
    }
    core = {setting: one for setting, one in found.items() if setting in CORE}
    larger = {setting: one for setting, one in found.items() if setting not in CORE}
    parts = [INTRODUCTION, "## Headroom", *_headroom(core)]
    parts += ["## Agreement of weights with usefulness", *_agreement(core)]
    parts += [part for setting in found for part in (f"## Arms: {setting}", _arms(_read(f"{setting}-arms.csv")))]
    for setting in _with_table(core, "further"):
        parts += [f"## Further arms: {setting}", FURTHER, _arms(_read(f"{setting}-further.csv"))]
    for setting in core:
        parts += [f"## Datasets: {setting}", _datasets(_read(f"{setting}-datasets.csv"))]
    for setting in _with_table(larger, "datasets"):
        parts += [f"## Weights: {setting}", _weights(_read(f"{setting}-datasets.csv"))]
        parts += [f"## Proxies: {setting} and static models", *_proxies(larger[setting])]
    parts += ["## Odd datasets", *_odd(found), "## What it costs", *_costs(found)]
    for setting in _with_table(core, "ablations"):
        parts += [f"## Ablations of learning: {setting}", _ablations(_read(f"{setting}-ablations.csv"))]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _with_table(settings: Iterable[str], name: str) -> list[str]:
    """Those settings that have a table of a name."""
    return [setting for setting in settings if (RESULTS / f"{setting}-{name}.csv").exists()]


def _headroom(found: Mapping[str, Any]) -> Iterator[str]:
    """What mixtures can gain."""
    yield (
        "60 random mixtures, scored on the choice half. *halves agree*: correlation of the mixtures' scores on the two"
        " halves of\nthe queries; *shared*: the deviation that both halves have in common. *gain of optimised*: what"
        " the mixture that\nthe regression on *large* expects most of gains over uniform on the report half."
    )
    rows = []
    for setting, one in found.items():
        for goal in GOALS:
            room = one["headroom"][goal]
            names = ("mean", "deviation", "halves_agree", "shared", "explained", "full_reliability", "ranks_of_halves")
            numbers = [f"{room[name]:.2f}" for name in (*names, "seed_deviation", "gain_of_optimised")]
            rows.append([setting, goal, *numbers])
    yield _table(
        ["setting", "sets", "mean", "deviation", "halves agree", "shared", "R²", "reliability", "ranks of the halves",
         "seed deviation", "gain of optimised"],
        rows,
    )  # fmt: skip


def _agreement(found: Mapping[str, Any]) -> Iterator[str]:
    """How weights and usefulness agree."""
    yield (
        "Spearman, mean over seeds. *reliability*: between two sets of 60 mixtures; *ceiling*: its root, what"
        " the true\nusefulness would reach as far as mixtures and trainings go. Neither knows the noise of the queries."
    )
    rows = []
    for setting, one in found.items():
        for label, name in (("reliability", "full_reliability"), ("ceiling", "ceiling")):
            rows.append([setting, f"*{label}*", *(f"*{one['headroom'][goal][name]:.2f}*" for goal in GOALS), ""])
        for index, row in enumerate(one["agreement"]["out"]):
            agree = [f"{np.mean(one['agreement'][goal][index]['with_usefulness']):.2f}" for goal in GOALS]
            rows.append([setting, row["measure"], *agree, f"{np.mean(row['between_seeds']):.2f}"])
    yield _table(["setting", "weights", *GOALS, "between seeds"], rows)


def _arms(rows: Sequence[Mapping[str, str]]) -> str:
    """The arms of a setting."""
    return _table(
        ["arm", "out", "± seeds", "gain out [95 %]", "p (Holm)", "gain large", "in", "± seeds", "gain in [95 %]",
         "worst set"],
        [
            [
                row["arm"], row["out"], row["out_deviation"],
                f"{float(row['gain']):+.2f} [{float(row['low']):+.2f}, {float(row['high']):+.2f}]",
                _p(row["p_holm"]), f"{float(row['gain_large']):+.2f}", row["in"], row["in_deviation"],
                f"{float(row['gain_in']):+.2f} [{float(row['low_in']):+.2f}, {float(row['high_in']):+.2f}]",
                f"{row['worst']} {float(row['worst_gain']):+.1f}",
            ]
            if row["arm"] != "uniform"
            else [row["arm"], row["out"], row["out_deviation"], "", "", "", row["in"], row["in_deviation"], "", ""]
            for row in rows
        ],
    )  # fmt: skip


def _datasets(rows: Sequence[Mapping[str, str]]) -> str:
    """Usefulness and mean weights."""
    text = "Usefulness: points for one percent more of the sample (choice half). Weights in percent, mean over seeds."
    body = [
        [row["dataset"], *(f"{float(row[f'usefulness_{goal}']):+.3f}" for goal in GOALS), *_mean_weights(row)]
        for row in sorted(rows, key=lambda row: -float(row["usefulness_large"]))
    ]
    return text + "\n\n" + _table(["dataset", *(f"useful {goal}" for goal in GOALS), *_measures(rows[0])], body)


def _weights(rows: Sequence[Mapping[str, str]]) -> str:
    """Mean weights."""
    first = _measures(rows[0])[0]
    body = [[row["dataset"], *_mean_weights(row)] for row in sorted(rows, key=lambda row: -_mean_weight(row, first))]
    return "In percent, mean over seeds.\n\n" + _table(["dataset", *_measures(rows[0])], body)


def _proxies(one: Mapping[str, Any]) -> Iterator[str]:
    """How the weights of a larger model's proxies agree with those of static models."""
    yield "Spearman over the datasets, mean over seeds."
    rows = []
    for index, row in enumerate(next(iter(one["proxies"].values()))):
        with_smaller = [f"{np.mean(rows[index]['with_smaller']):.2f}" for rows in one["proxies"].values()]
        rows.append([row["measure"], *with_smaller, f"{np.mean(row['between_seeds']):.2f}"])
    yield _table(["weights", *(f"with {name}" for name in one["proxies"]), "between seeds"], rows)


def _measures(row: Mapping[str, str]) -> list[str]:
    """The measures that a row of datasets has weights of."""
    return list(dict.fromkeys(name.rsplit("_", 1)[0] for name in row if name.rsplit("_", 1)[-1].isdigit()))


def _mean_weights(row: Mapping[str, str]) -> list[str]:
    """Mean weight over seeds by every measure, in percent."""
    return [f"{100 * _mean_weight(row, measure):.1f}" for measure in _measures(row)]


def _mean_weight(row: Mapping[str, str], measure: str) -> float:
    """Mean weight over seeds of a dataset."""
    return float(np.mean([float(value) for name, value in row.items() if name.rsplit("_", 1)[0] == measure]))


def _odd(found: Mapping[str, Any]) -> Iterator[str]:
    """Where noisy, copied and easy datasets end."""
    yield "Place among all datasets by weight, 1 the highest, of every seed; weight in percent, mean."
    rows = [(setting, row) for setting, one in found.items() if setting.startswith("users") for row in one["odd"]]
    yield _table(
        ["setting", "weights", "dataset", "places", "of", "weight"],
        [
            [
                setting, row["measure"], row["dataset"], ", ".join(map(str, row["places"])), row["of"],
                f"{100 * row['weight']:.1f}",
            ]
            for setting, row in rows
        ],
    )  # fmt: skip


def _costs(found: Mapping[str, Any]) -> Iterator[str]:
    """Seconds of learning beside those of a trial."""
    yield (
        "Seconds on the clock of one thread, with one or two other processes on the two cores: a training of the final"
        " model with\nits scoring, and learning the weights once, without the reference (*transfer* has none)."
    )
    names = list(dict.fromkeys(name for one in found.values() for name in one["seconds"]))
    rows = [
        [setting, *(f"{np.mean(one['seconds'][name]):.0f}" if name in one["seconds"] else "" for name in names)]
        for setting, one in found.items()
    ]
    yield _table(["setting", *names], rows)


def _ablations(rows: Sequence[Mapping[str, str]]) -> str:
    """Ways of learning."""
    text = "Agreement with usefulness (Spearman, mean of three seeds) of the last weights, and between seeds."
    names = [f"agreement_{goal}" for goal in GOALS]
    body = [
        [row["measure"], row["variation"], *(f"{float(row[name]):.2f}" for name in (*names, "between_seeds")),
         f"{float(row['effective_datasets']):.1f}", f"{float(row['seconds']):.0f}"]
        for row in rows
    ]  # fmt: skip
    return (
        text + "\n\n" + _table(["measure", "variation", *GOALS, "between seeds", "effective datasets", "seconds"], body)
    )


def _p(value: str) -> str:
    """A p-value, where there is one."""
    return "" if not value else "< .001" if float(value) < 0.001 else f"{float(value):.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _read(name: str) -> list[dict[str, str]]:
    """Read a table of results."""
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
