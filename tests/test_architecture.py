"""The house rules that a machine can check."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tdro"
EVERYWHERE = {"errors", "files", "instructions", "locks"}
BELOW_TRAINING = {
    "prepare",
    "evaluation",
    "retrieval",
    "models",
    "data",
    "core",
    "config",
    "study_file",
    "devices",
    "sharding",
}
ALLOWED = {
    "errors": set(),
    "files": set(),
    "instructions": set(),
    "locks": set(),
    "config": set(),
    "study_file": {"config"},
    "devices": set(),
    "sharding": {"devices"},
    "core": set(),
    "data": {"devices", "config"},
    "models": {"devices", "config"},
    "retrieval": {"models", "data", "devices", "config"},
    "evaluation": {"retrieval", "data", "config"},
    "prepare": {"retrieval", "data", "config"},
    "demo": {"data"},
    "integrations": {"evaluation", "retrieval", "models", "data", "core", "devices", "config"},
    "training": BELOW_TRAINING,
    "report": {"evaluation", "core", "config", "study_file"},
    "setup": BELOW_TRAINING - {"sharding"},
    "cli": {"training", "demo", "integrations", "report", "setup", *BELOW_TRAINING},
    "__init__": {"config", "study_file", "data", "models", "retrieval", "training"},
    "__main__": {"cli"},
}
LIGHT = {
    "tdro.cli.main",
    "tdro.cli.study",
    "tdro.cli.demo",
    "tdro.cli.export",
    "tdro.cli.check",
    "tdro.cli.convert",
    "tdro.cli.dedup",
    "tdro.cli.leakage_display",
    "tdro.cli.mine",
    "tdro.cli.evaluate",
    "tdro.cli.compare",
    "tdro.cli.compare_display",
    "tdro.cli.fetch",
    "tdro.cli.index",
    "tdro.cli.search",
    "tdro.cli.init",
    "tdro.cli.doctor",
    "tdro.cli.estimate",
    "tdro.cli.usefulness",
    "tdro.cli.report",
    "tdro.cli.track",
    "tdro.cli.config",
    "tdro.cli.completion",
    "tdro.cli.import_args",
    "tdro.cli.live",
    "tdro.cli.banner",
    "tdro.cli.overrides",
    "tdro.instructions",
    "tdro.cli.display",
    "tdro.config",
    "tdro.study_file",
    "tdro.errors",
}
HEAVY = {"torch", "transformers", "sentence_transformers", "datasets", "numpy", "pyarrow", "scipy"}


def modules() -> list[Path]:
    """All source files."""
    return sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    """The room a file is in: its folder under tdro, or its own name."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def imports(path: Path, top_only: bool = False) -> Iterator[str]:
    """Names of the modules a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down_only(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "tdro" and len(parts) > 1 and parts[1] not in ("__version__", here):
            assert parts[1] in ALLOWED[here] | EVERYWHERE, f"{here} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_core_knows_torch_and_numpy_only_and_plan_numpy_only(path):
    if room(path) == "core":
        outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        allowed = {"tdro", "numpy"} if path.name == "plan.py" else {"tdro", "numpy", "torch"}
        assert outside <= allowed


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_only_devices_and_sharding_know_ranks_and_only_the_command_line_prints(path):
    if path.name not in ("devices.py", "sharding.py"):
        assert not {n for n in imports(path) if n.startswith(("torch.distributed", "accelerate"))}
    if room(path) not in ("cli", "__main__"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not [node for node in nodes if isinstance(node, ast.Name) and node.id == "print"]


def test_every_public_name_has_a_docstring_and_every_function_is_typed():
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{path} has no docstring"
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for node in [*tree.body, *(member for owner in classes for member in owner.body)]:
            if isinstance(node, ast.FunctionDef):
                assert node.returns is not None, f"{path}:{node.lineno} {node.name} has no return type"
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name} has no docstring"


def test_light_modules_import_nothing_heavy():
    code = f"import sys, json; [__import__(m) for m in {sorted(LIGHT)}]; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(json.loads(output))


def test_import_tdro_does_not_import_torch_and_names_are_there():
    code = "import sys, tdro; assert 'torch' not in sys.modules; tdro.load_study; print(tdro.__version__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_help_takes_less_than_600_ms_of_cpu_and_no_torch():
    code = (
        "import resource, sys; from tdro.cli.main import main; assert main(['--help']) == 0;"
        "assert 'torch' not in sys.modules; usage = resource.getrusage(resource.RUSAGE_SELF);"
        "print(usage.ru_utime + usage.ru_stime)"
    )
    seconds = [
        float(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
        )
        for _ in range(3)
    ]
    assert min(seconds) < 0.6


def test_nothing_names_the_machine_it_was_written_on():
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert "/work/" not in text and "/home/" not in text
