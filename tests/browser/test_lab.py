"""A chapter in JupyterLab: all of it runs, and its figure moves with the kernel behind it."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from nbformat import v4

from browser.conftest import ROOT

pytest.importorskip("jupyterlab", reason="needs JupyterLab: make test-browser")

CHAPTER = "00_cosine_similarity"


def code_cells(path):
    return [cell for cell in v4.reads(path.read_text(encoding="utf-8")).cells if cell.cell_type == "code"]


@pytest.fixture
def chapter(tmp_path):
    """A copy of the chapter that stores no output: what it shows was computed in the test."""
    notebook = v4.reads((ROOT / "chapters" / f"{CHAPTER}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    path = tmp_path / "chapters" / f"{CHAPTER}.ipynb"
    path.parent.mkdir()
    path.write_text(v4.writes(notebook), encoding="utf-8")
    return path


@pytest.fixture
def lab(chapter, tmp_path):
    """The address of a JupyterLab in the chapter's folder, with no settings of this machine's user."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    options = ["--no-browser", "--allow-root", f"--ServerApp.port={port}", "--IdentityProvider.token="]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url="]
    command = [sys.executable, "-m", "jupyterlab", str(chapter.parent), *options]
    with (tmp_path / "log").open("w+") as log:
        server = subprocess.Popen(command, env=os.environ | folders, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=5).close()
                    break
                except (urllib.error.URLError, TimeoutError):
                    assert server.poll() is None, (tmp_path / "log").read_text()
                    time.sleep(0.25)
            yield address
        finally:
            server.terminate()  # its kernels end with it
            server.wait(30)


def test_a_chapter_runs_and_its_slider_asks_the_kernel(reader, lab, chapter):
    page = reader.context(1280).new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{lab}/lab/tree/{CHAPTER}.ipynb")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    known = code_cells(ROOT / "chapters" / f"{CHAPTER}.ipynb")
    last, error = (
        page.locator(".jp-InputPrompt", has_text=f"[{len(known)}]:"),
        page.locator(".jp-RenderedText[data-mime-type$=error]"),
    )
    last.or_(error).first.wait_for()
    # Read once the server has answered: while it writes, the file is empty.
    with page.expect_response(lambda answer: answer.request.method == "PUT" and CHAPTER in answer.url) as saved:
        page.keyboard.press("Control+s")
    assert saved.value.ok
    cells = code_cells(chapter)
    assert [output for cell in cells for output in cell.outputs if output.output_type == "error"] == []
    assert [cell.execution_count for cell in cells] == [cell.execution_count for cell in known]
    assert [len(cell.outputs) for cell in cells] == [len(cell.outputs) for cell in known]

    page.locator(".jp-WindowedPanel-outer").first.evaluate("panel => panel.scrollTo(0, 0)")
    figure = page.locator(".jp-OutputArea .mathlib-figure [role=img]").first
    assert "b of length 1." in figure.get_attribute("aria-label")
    # The kernel draws one frame at a time, so a frame that was not there before is its answer.
    assert page.locator('[aria-label*="b of length 1.5"]').count() == 0
    page.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowRight")
    page.locator('.jp-OutputArea .mathlib-figure [aria-label*="b of length 1.5"]').first.wait_for()
    assert page.locator(".widget-readout").first.inner_text() == "1.5"
    assert "b of length 1.5" in figure.get_attribute("aria-label")
    page.close()
