"""`tdro fetch` as it is typed."""

from pathlib import Path

import pytest
import yaml

from tdro.cli import fetch as command
from tdro.cli.main import main
from tdro.config import EvaluationConfig
from tdro.errors import EnvironmentProblem
from tdro.evaluation import downloads


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is fetched, instead of fetching it."""
    names: list[str] = []

    def fetch(name: str, folder: Path, progress: downloads.Progress) -> None:
        names.append(name)
        for place in downloads._places(name, folder):
            place.mkdir(parents=True)
        progress(name, 1_500_000, 3_000_000)
        progress(name, 3_000_000, 3_000_000)

    monkeypatch.setattr(downloads, "fetch", fetch)
    return names


def test_without_names_everything_is_listed(capsys):
    assert main(["fetch"]) == 0
    printed = capsys.readouterr().out
    for name in ("scifact", "cqadupstack", "msmarco", "not public: bioasq", "sw ", "mkqa", "mteb/NAME"):
        assert name in printed


def test_sets_are_fetched_once_and_the_lines_for_a_study_can_be_read(asked, tmp_path, capsys):
    line = ["fetch", "beir/scifact", "miracl/sw", "miracl/yo", "mkqa", "--to", str(tmp_path)]
    assert main(line) == 0
    assert asked == ["beir/scifact", "miracl/sw", "miracl/yo", "mkqa", "beir/nq"]
    printed = capsys.readouterr().out
    section = yaml.safe_load(printed[printed.index("evaluation:") :])["evaluation"]
    tasks = EvaluationConfig.model_validate(section).tasks
    assert set(tasks) == {"scifact", "miracl", "mkqa", "nq"}
    assert tasks["miracl"].languages == ("sw", "yo")
    assert Path(tasks["mkqa"].corpus) == tmp_path / "nq" == Path(tasks["nq"].path)
    assert main(line) == 0
    assert len(asked) == 5 and capsys.readouterr().out.count("is there") == 5


def test_tasks_of_mteb_are_fetched_once_and_their_lines_name_what_they_need(asked, tmp_path, monkeypatch, capsys):
    from tdro.integrations import mteb_tasks
    from tdro.integrations.mteb_tasks import TaskFolder

    fetched: list[str] = []
    pooled, plain = tmp_path / "Pool", tmp_path / "Plain"
    found = {
        "mteb/Pool": [TaskFolder("Pool", each, "dev", pooled / each, pooled=True) for each in ("sw", "yo")],
        "mteb/Plain": [TaskFolder("Plain", "default", "standard", plain, ignore_identical_ids=True)],
    }

    def fetch_folders(folders, to, progress):
        for folder in folders:
            fetched.append(folder.path.name)
            folder.path.mkdir(parents=True)
            progress(folder.path.name, 10, 0)

    monkeypatch.setattr(mteb_tasks, "find_folders", lambda name, to: found[name])
    monkeypatch.setattr(mteb_tasks, "fetch_folders", fetch_folders)
    line = ["fetch", "mteb/Pool", "beir/scifact", "mteb/Plain", "--to", str(tmp_path)]
    assert main(line) == 0
    assert asked == ["beir/scifact"] and fetched == ["sw", "yo", "Plain"]
    printed = capsys.readouterr().out
    tasks = EvaluationConfig.model_validate(yaml.safe_load(printed[printed.index("evaluation:") :])["evaluation"]).tasks
    assert set(tasks) == {"scifact", "Pool", "Plain"}
    assert (tasks["Pool"].path, tasks["Pool"].split) == (str(pooled), "")
    assert (tasks["Plain"].split, tasks["Plain"].ignore_identical_ids) == ("standard", True)
    assert main(line) == 0
    assert len(fetched) == 3 and capsys.readouterr().out.count("is there") == 3


def test_a_wrong_name_of_mteb_stops_before_anything_is_fetched(asked, tmp_path, capsys):
    pytest.importorskip("mteb", reason="needs the extra mteb")
    assert main(["fetch", "beir/scifact", "mteb/SciFacts", "--to", str(tmp_path)]) == 2
    assert "SciFact" in capsys.readouterr().err and not asked and not list(tmp_path.iterdir())


def test_progress_is_one_line_and_ends_where_the_download_does(monkeypatch, capsys):
    monkeypatch.setattr(command.sys.stderr, "isatty", lambda: True, raising=False)
    with pytest.raises(KeyboardInterrupt), command._line() as line:
        for done in (1_500_000, 1_600_000, 3_000_000):
            line("scifact", done, 3_000_000)
        raise KeyboardInterrupt
    said = capsys.readouterr().err
    assert said.startswith("\r\033[Kscifact: 1.5 of 3.0 MB, 50%") and said.endswith("scifact: 3.0 of 3.0 MB, 100%\n")
    assert "1.6" not in said


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["beir/scifact"], "nowhere to put it"),
        (["--to", "x"], "no benchmark"),
        (["beir/bioasq", "--to", "x"], "not public"),
        (["beir/unknown", "--to", "x"], "no such benchmark"),
    ],
)
def test_mistakes_end_with_code_two_and_fetch_nothing(asked, arguments, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", *arguments]) == 2
    assert what in capsys.readouterr().err and not asked and not list(tmp_path.iterdir())


def test_without_a_network_the_code_is_three(tmp_path, monkeypatch, capsys):
    def fetch(*_: object) -> None:
        raise EnvironmentProblem("file cannot be downloaded", where="https://example.org")

    monkeypatch.setattr(downloads, "fetch", fetch)
    assert main(["fetch", "beir/scifact", "--to", str(tmp_path)]) == 3
    assert "https://example.org" in capsys.readouterr().err
