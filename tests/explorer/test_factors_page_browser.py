"""The page in a real browser: no script, no request, no sideways scroll on a telephone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dictlearn.explorer.factors_page import render
from tests.explorer.test_factors_page import NASTY, factor, page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("REQUIRE_BROWSER") != "1", reason="there is no chromium"
)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--virtual-time-budget=3000",
    "--dump-dom",
)

FRAME = """<!DOCTYPE html><body><iframe src="factors.html" style="width:390px;height:800px"
onload="const d = this.contentDocument; document.title = [
  d.documentElement.scrollWidth - d.documentElement.clientWidth,
  d.querySelectorAll('article').length,
  d.querySelectorAll('details[open] .c b').length,
  d.querySelectorAll('img, script, iframe, [onmouseover]').length,
  this.contentWindow.p === undefined,
  getComputedStyle(d.querySelector('article')).display,
  d.querySelector('details[open] .c b').textContent,
].join('|')"></iframe>"""


def test_the_page_fits_a_telephone_and_nothing_in_it_runs(tmp_path: Path) -> None:
    """E5 a page of hostile text in a real browser: nothing in it runs."""
    long = tuple(f" word{place}" for place in range(40))
    html = render(page(factor(1, NASTY), factor(2, long), factor(3, ("x" * 300, " y"))))
    (tmp_path / "factors.html").write_text(html, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME, encoding="utf-8")
    command = [
        str(CHROMIUM),
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        (tmp_path / "frame.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    title = done.stdout.decode().split("<title>")[1].split("</title>")[0]
    assert title == f"0|4|3|0|true|grid|{NASTY[-1]}"
