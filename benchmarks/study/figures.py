"""Draw the study's figures from its committed results: PYTHONPATH=benchmarks python -m study.figures."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from study.settings import CORE, LARGE, RESULTS

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
DARK, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
"""Colours that people with a colour vision deficiency can tell apart (Okabe and Ito, 2008)."""


def main() -> None:
    """Draw what there are results of."""
    matplotlib.rcParams.update({"svg.hashsalt": "tdro", "font.size": 9, "svg.fonttype": "none"})
    FIGURES.mkdir(exist_ok=True)
    settings = [setting for setting in CORE if (RESULTS / f"{setting}.json").exists()]
    _save(_headroom(settings), "study-headroom")
    _save(_arms(settings), "study-arms")


def _headroom(settings: Sequence[str]) -> plt.Figure:
    """Every random mixture on both halves of the queries: a line where there is something to gain, else a cloud."""
    figure, panels = plt.subplots(1, len(settings), figsize=(3 * len(settings), 3.2), squeeze=False, layout="tight")
    for setting, panel in zip(settings, panels[0], strict=True):
        rows = _read(f"{setting}-mixtures.csv")
        halves = [[np.mean([float(row[f"{half} {task}"]) for task in LARGE]) for row in rows] for half in _HALVES]
        room = json.loads((RESULTS / f"{setting}.json").read_text("utf-8"))["headroom"]["large"]
        panel.scatter(*halves, s=12, color=DARK, label="random mixture")
        panel.scatter(
            *(np.mean(room[f"uniform_{half}"]) for half in _HALVES), s=60, marker="D", color=ORANGE, label="uniform"
        )
        panel.scatter(
            *(np.mean(room[f"optimised_{half}"]) for half in _HALVES),
            s=80,
            marker="*",
            color="black",
            label="optimised",
        )
        panel.set_title(f"{setting}\ncorrelation {room['halves_agree']:.2f}")
        panel.set_xlabel("choice half")
    panels[0][0].set_ylabel("report half, nDCG@10 x 100")
    panels[0][0].legend(frameon=False, fontsize=7)
    return figure


def _arms(settings: Sequence[str]) -> plt.Figure:
    """Gain of every arm over uniform out of domain and in domain, with its interval over queries."""
    figure, panels = plt.subplots(
        1, len(settings), figsize=(3 * len(settings), 5), squeeze=False, sharey=True, layout="tight"
    )
    for setting, panel in zip(settings, panels[0], strict=True):
        rows = [row for row in _read(f"{setting}-arms.csv") if row["arm"] != "uniform"][::-1]
        for shift, end, colour, name in ((0.15, "", DARK, "out of domain"), (-0.15, "_in", ORANGE, "in domain")):
            gain = [float(row[f"gain{end}"]) for row in rows]
            reach = [
                [float(row[f"gain{end}"]) - float(row[f"low{end}"]) for row in rows],
                [float(row[f"high{end}"]) - float(row[f"gain{end}"]) for row in rows],
            ]
            place = np.arange(len(rows)) + shift
            panel.errorbar(gain, place, xerr=reach, fmt="o", markersize=3, color=colour, linewidth=1, label=name)
        panel.axvline(0, color=GREY, linewidth=0.8)
        panel.set_yticks(range(len(rows)), [row["arm"] for row in rows])
        panel.set_title(setting)
        panel.set_xlabel("nDCG@10 x 100 over uniform")
    panels[0][0].legend(frameon=False, fontsize=7)
    return figure


def _read(name: str) -> list[dict[str, str]]:
    """Read a table of results."""
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _save(figure: plt.Figure, name: str) -> None:
    """Write a figure whose bytes depend on the results alone."""
    figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


_HALVES = ("choice", "report")

if __name__ == "__main__":
    main()
