"""The report of a run that really ran."""

import re

import pytest
from studies import tiny_study

from tdro.report import health
from tdro.report.page import make_report, write_report
from tdro.training import diagnose
from tdro.training.pipeline import run_study
from tdro.training.run import Run

pytestmark = pytest.mark.slow


def test_a_finished_run_has_every_section_filled(tmp_path):
    study = tiny_study(tmp_path, weights={"seeds": 2, "steps": 12})
    run_study(Run(study))
    written = write_report(study.run_folder)
    html, text = written.page.read_text("utf-8"), written.text.read_text("utf-8")
    assert written.headline == "Too small to tell"
    assert "could not be made" not in html
    assert "cannot be read" not in html
    for said in ("Reference losses of single queries", "Over 2 seeds of the proxy", "Queries hurt most"):
        assert said in html
        assert said in text
    assert re.search(r"\| one \| (keep|drop|undecided) \|", text)
    assert written.page.stat().st_size < 2_000_000


def test_thresholds_are_those_of_the_run():
    for name in ("SUSPECT", "MOVING", "MANY_EPOCHS", "FEW_STEPS"):
        assert getattr(diagnose, name) == getattr(health, name)


def test_every_stage_after_which_a_run_may_end_gets_a_page(tmp_path):
    study = tiny_study(tmp_path)
    for last in ("mine", "reference", "weights", "robust"):
        run_study(Run(study), last)
        report = make_report(study.run_folder)
        assert report.headline.startswith("No verdict")
        assert "could not be made" not in str(report.sections)
