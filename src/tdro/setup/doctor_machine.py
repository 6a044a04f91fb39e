"""Devices, precision, attention, memory, disk and launcher of this machine."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import torch
import yaml

from tdro.config import Study
from tdro.devices import multiplies_bfloat16
from tdro.errors import TdroError
from tdro.files import cache_folder
from tdro.models.network import COMPILERS, FLASH_PACKAGES, check_attention
from tdro.setup.doctor import Finding, Status, failure

GB = 1e9
LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 4.0, 10.0, 1.0
"""GB of free memory and disk below which there is a warning, and of disk below which nothing will work."""
_MANY_FILES = 100_000  # of the cache, after which its size is only a lower bound


def devices() -> Iterator[Finding]:
    """Say what computes."""
    cores, threads = _cores(), torch.get_num_threads()
    fix = "" if threads >= cores else f"export OMP_NUM_THREADS={cores}"
    status: Status = "OK" if threads >= cores or "WORLD_SIZE" in os.environ else "WARN"
    yield Finding("devices", status, "cpu", f"{cores} cores; torch uses {threads} threads", fix)
    if (load := os.getloadavg()[0]) > cores:
        text = f"{load:.1f} processes want {cores} cores: estimates and runs will be slow and uneven"
        yield Finding("devices", "WARN", "load", text, "on a shared machine try OMP_NUM_THREADS=1")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            text = f"{about.name}, {about.total_memory / GB:.0f} GB, compute capability {about.major}.{about.minor}"
            yield Finding("devices", "OK", f"gpu {number}", text)
    elif shutil.which("nvidia-smi"):
        built = torch.version.cuda or "no CUDA"
        text = f"there is a driver, but this torch ({torch.__version__}, built for {built}) sees no GPU"
        fix = "pip install torch --index-url https://download.pytorch.org/whl/cu128, or the build for your driver"
        yield Finding("devices", "WARN", "gpu", text, fix)
    else:
        yield Finding("devices", "OK", "gpu", "none; studies run on the CPU")


def precision(study: Study | None) -> Iterator[Finding]:
    """Say in which precision matrices are multiplied."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        text = "bfloat16 in hardware: model.precision auto uses it" if native else "no bfloat16: auto means float32"
        asked = study is not None and study.model.precision == "bfloat16" and not native
        fix = "--model.precision float32" if asked else ""
        yield Finding("precision", "FAIL" if asked else "OK", "bfloat16", text, fix)
        return
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    has = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if known.get(name)]
    text = f"float32 is what auto means on a CPU; this one has {', '.join(has) or 'none of AVX2, AVX-512, AMX'}"
    if multiplies_bfloat16("cpu"):
        text += "; exact search screens in bfloat16"
    yield Finding("precision", "OK", "cpu", text)


def attention(study: Study | None) -> Iterator[Finding]:
    """Say which attention can run, and whether the one that the study asks for can."""
    cuda = torch.cuda.is_available()
    if cuda:
        kernels = {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        }
        yield Finding(
            "attention", "OK", "sdpa", f"kernels: {', '.join(n for n, on in kernels.items() if on) or 'math'}"
        )
        for name, packages in FLASH_PACKAGES.items():
            found = [package for package in packages if util.find_spec(package)]
            text = f"{found[0]} is installed: texts are not padded at all" if found else "not installed"
            yield Finding("attention", "OK", name, text, "" if found else f"pip install {packages[-1]}")
    else:
        yield Finding("attention", "OK", "sdpa", "torch's own, also on a CPU; flash attention needs a GPU")
    if study is None:
        return
    try:
        half = cuda and study.model.precision in ("auto", "bfloat16")
        check_attention(study.model.attention, "cuda" if cuda else "cpu", half)
    except TdroError as error:
        yield failure("attention", "model.attention", error)
    compilers = os.environ.get("CXX") or os.environ.get("CC") or any(shutil.which(name) for name in COMPILERS)
    if study.model.compile and not compilers:
        fix = "apt-get install g++, or --model.no-compile"
        yield Finding("attention", "FAIL", "model.compile", "needs a C compiler, and there is none", fix)


def memory() -> Iterator[Finding]:
    """Say how much memory is free."""
    total, free = _memory()
    little = free < LITTLE_MEMORY
    fix = "end other processes, or lower model.micro_batch_tokens" if little else ""
    text = f"{free:.1f} of {total:.1f} GB free"
    yield Finding("memory", "WARN" if little else "OK", "memory", text, fix)
    for number in range(torch.cuda.device_count()):
        free_bytes, all_bytes = torch.cuda.mem_get_info(number)
        little = free_bytes < all_bytes / 2
        fix = "see with nvidia-smi who uses it" if little else ""
        text = f"{free_bytes / GB:.1f} of {all_bytes / GB:.1f} GB free"
        yield Finding("memory", "WARN" if little else "OK", f"gpu {number}", text, fix)


def places(study: Study | None) -> Iterator[Finding]:
    """Say whether the run folder and the cache can be written to, and how much room there is."""
    run = Path("runs") if study is None else study.run_folder
    for name, folder, fix in (
        ("run folder", run, "choose another folder with --output FOLDER"),
        ("cache", cache_folder(), "export TDRO_CACHE=FOLDER on a disk with room"),
    ):
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not _writable(there):
            yield Finding("places", "FAIL", name, f"{folder} cannot be written to", fix)
            continue
        free = shutil.disk_usage(there).free / GB
        held = f", holds {_size(folder)}" if name == "cache" and folder.is_dir() else ""
        status: Status = "FAIL" if free < NO_DISK else "WARN" if free < LITTLE_DISK else "OK"
        yield Finding("places", status, name, f"{folder}{held}; {free:.0f} GB free", "" if status == "OK" else fix)


def launcher(study: Study | None) -> Iterator[Finding]:
    """Say what a launcher has set, and whether it fits this machine."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = {name: os.environ[name] for name in names if name in os.environ}
    text = " ".join(f"{name}={value}" for name, value in given.items()) or "none: one process"
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in given]
    if int(given.get("WORLD_SIZE", "1")) > 1 and lacking:
        fix = "start all ranks with torchrun or accelerate launch, or unset WORLD_SIZE"
        yield Finding("launcher", "FAIL", "ranks", f"{text}, but no {', '.join(lacking)}", fix)
    else:
        yield Finding("launcher", "OK", "ranks", text)
    yield _threads(int(given.get("LOCAL_WORLD_SIZE", "1")))
    yield from _accelerate(study)


def _threads(ranks: int) -> Finding:
    """Compare OMP_NUM_THREADS with the cores of each rank."""
    cores, given = max(_cores() // ranks, 1), os.environ.get("OMP_NUM_THREADS", "")
    if not given:
        return Finding("launcher", "OK", "OMP_NUM_THREADS", f"not set: torch takes {torch.get_num_threads()} threads")
    odd = given.isdecimal() and int(given) != cores and not torch.cuda.is_available()
    text = f"{given}, with {cores} cores for each of {ranks} ranks" if ranks > 1 else f"{given}, with {cores} cores"
    fix = f"export OMP_NUM_THREADS={cores}" if odd else ""
    return Finding("launcher", "WARN" if odd else "OK", "OMP_NUM_THREADS", text, fix)


def _accelerate(study: Study | None) -> Iterator[Finding]:
    """Look at the settings that `accelerate launch` takes where none are given."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    file = Path(os.environ.get("ACCELERATE_CONFIG_FILE") or home / "accelerate" / "default_config.yaml")
    if not file.is_file():
        yield Finding("launcher", "OK", "accelerate", "no default settings; recipes/launch has some")
        return
    fix = "accelerate launch --config_file recipes/launch/ddp.yaml, or torchrun"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        kind = str(content.get("distributed_type", "NO")).upper()
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        said = str(error).partition("\n")[0]
        yield Finding("launcher", "WARN", "accelerate", f"{file} cannot be read: {said}", "accelerate config")
        return
    sharded = study is not None and study.model.sharding == "full"
    refused = kind in ("DEEPSPEED", "MEGATRON_LM") or (kind == "FSDP" and not sharded)
    text = f"{file}: {kind}{', which tdro refuses' if refused else ''}"
    yield Finding("launcher", "WARN" if refused else "OK", "accelerate", text, fix if refused else "")


def _cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> tuple[float, float]:
    """Return all and free memory in GB, as far as a container lets this process have it."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), 0
    info = Path("/proc/meminfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None and limit < total:
        total, free = limit, min(free, limit - used)
    return total / GB, (free or total) / GB


def _number(file: Path) -> int | None:
    """Read a number of the system; None where there is none."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _writable(folder: Path) -> bool:
    """Try to write to a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _size(folder: Path) -> str:
    """Add up the files in a folder."""
    total = seen = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            seen += 1
            total += os.lstat(os.path.join(parent, name)).st_size
        if seen > _MANY_FILES:
            return f"more than {total / GB:.1f} GB"
    return f"{total / GB:.1f} GB"
