"""`tdro estimate` as a person and a script meet it."""

import json

from studies import tiny_study

from tdro.cli.main import main
from tdro.study_file import save_study


def test_estimate_prints_stages_and_total_and_the_same_as_json(tmp_path, capsys):
    path, prices = tmp_path / "study.yaml", tmp_path / "prices.yaml"
    path.write_text(save_study(tiny_study(tmp_path, "static")), encoding="utf-8")
    prices.write_text("currency: EUR\nmachines:\n  - {device: '', watts: 1000000, per_hour: 3600}\n", encoding="utf-8")
    assert main(["estimate", str(path), "--prices", str(prices)]) == 0
    output = capsys.readouterr().out
    for part in ("reference", "similarities", "weights", "robust", "evaluation", "in all: about", "3600 EUR per hour"):
        assert part in output
    assert main(["estimate", str(path), "--prices", str(prices), "--json", "--weights.steps", "600"]) == 0
    content = json.loads(capsys.readouterr().out)
    total = content["total"]
    assert abs(total["money"] - total["seconds"]) < 0.01 * total["money"]  # an EUR per second
    assert content["stages"]["weights"]["seconds"] > content["stages"]["reference"]["seconds"]
    assert not (tmp_path / "run").exists()
    assert main(["run", str(path), "--dry-run", "--json"]) == 0


def test_estimate_refuses_what_cannot_run_and_no_workers(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(save_study(tiny_study(tmp_path, "static")), encoding="utf-8")
    assert main(["estimate", str(path), "--model.base", "no/such/model"]) == 2
    assert "no/such/model" in capsys.readouterr().err
    assert main(["estimate", str(path), "--workers", "0"]) == 2
    assert "--workers" in capsys.readouterr().err
    assert main(["estimate", "--workers", "2"]) == 2
    assert "study file comes first" in capsys.readouterr().err
