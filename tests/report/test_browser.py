"""The page as a browser shows it, wide and narrow; skipped where there is no Chromium."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from tdro.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

MEASURE = """<!doctype html><iframe></iframe><pre></pre><script>
const frame = document.querySelector("iframe"), widths = [1280, 400], seen = [];
function texts(page) {
  const overlaps = [];
  for (const svg of page.querySelectorAll("svg")) {
    if (getComputedStyle(svg).display === "none") continue;
    const boxes = [...svg.querySelectorAll("text")].map((t) => ({name: t.textContent, box: t.getBoundingClientRect()}));
    const around = svg.getBoundingClientRect();
    for (const [i, a] of boxes.entries()) {
      if (a.box.left < around.left - 1 || a.box.right > around.right + 1) overlaps.push(`${a.name} leaves the picture`);
      for (const b of boxes.slice(i + 1))
        if (Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left) > 1 &&
            Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top) > 4)
          overlaps.push(`${a.name} / ${b.name}`);
    }
  }
  return overlaps;
}
function plans(page) {
  const form = page.getElementById("what-if-form"), rows = () => [...page.querySelectorAll("#what-if-plan tbody tr")];
  const shown = () => rows().map((row) => [row.cells[0].textContent, row.cells[2].textContent]);
  const before = shown();
  form.elements.plan.value = "reweight";
  form.elements.plan.dispatchEvent(new Event("input", {bubbles: true}));
  const after = shown();
  form.reset();
  return {before, after, again: shown()};
}
function next() {
  if (seen.length === widths.length) { document.querySelector("pre").textContent = JSON.stringify(seen); return; }
  const width = widths[seen.length];
  frame.style.width = width + "px";
  frame.onload = () => {
    const page = frame.contentDocument;
    page.querySelectorAll("details").forEach((one) => { one.open = true; });
    seen.push({width, needed: page.documentElement.scrollWidth, overlaps: texts(page), plans: plans(page)});
    next();
  };
  frame.src = "index.html?" + width;
}
next();
</script>"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


def look_at(address: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What the measuring page found, and the messages of the console."""
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000",
        "--virtual-time-budget=20000", "--enable-logging=stderr", "--dump-dom", f"{address}/measure.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<pre>(.+?)</pre>", done.stdout, re.S)
    assert found, done.stdout[-500:] + done.stderr[-2000:]
    text = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line]
    return json.loads(text), console


NAMES = {
    "three": ["nq", "quora", "xsum"],
    "seventeen": [f"stackexchange_title_body_{k}" for k in range(17)],
    "two hundred": [f"a-very-long-name-of-a-dataset-with-the-number-{k}" for k in range(200)],
    "odd": ["<script>alert(1)</script>", "語" * 30, "x" * 120],
}


@pytest.mark.parametrize("case", NAMES)
def test_page_fits_wide_and_narrow_without_errors(server, case):
    folder, address = server
    names = NAMES[case]
    run = write_run(
        folder / "run",
        names,
        steps=60,
        gain=0.02,
        weights=[0.97**k for k in range(len(names))],
        text="<b>bold</b> " * 60,
    )
    (run / "estimate.json").write_text(
        json.dumps({"stages": {"weights": {"seconds": 50, "low": 40, "high": 70}}}), "utf-8"
    )
    write_report(run, folder)
    (folder / "measure.html").write_text(MEASURE, "utf-8")
    found, console = look_at(address)
    assert console == []
    assert [one["width"] for one in found] == [1280, 400]
    for one in found:
        assert one["needed"] <= one["width"], f"{one['needed']} pixels needed at {one['width']}"
        assert one["overlaps"] == []
        plans = one["plans"]
        assert len(plans["before"]) == len(names)
        assert plans["before"] != plans["after"]
        assert plans["before"] == plans["again"]
