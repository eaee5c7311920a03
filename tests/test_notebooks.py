"Every notebook runs, each in a process of its own; notebooks, package and README are in sync."
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

NOTEBOOKS = sorted(path.name for path in (ROOT/"nbs").glob("[!_]*.ipynb"))


def run(*command, cwd=ROOT, **env):
    "Run a command; its output is shown where it fails."
    done = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def cells(name): return json.loads((ROOT/"nbs"/name).read_text())["cells"]


def test_no_notebook_is_missing():
    numbers = [name[:2] for name in NOTEBOOKS if name != "index.ipynb"]
    assert numbers == [f"{n:02d}" for n in range(16)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, tmp_path):
    "nbdev_test, which leaves out cells with the flags of settings.ini. A process each, so that no state leaks."
    out = run("nbdev_test", "--path", f"nbs/{name}", "--n_workers", "0", "--do_print", MPLBACKEND="Agg",
              TMPDIR=str(tmp_path))
    assert "Success" in out, out


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_fit_to_be_read(name):
    "Outputs are saved, ids are there, nothing of a machine or of an error shows."
    found = cells(name)
    assert all(cell.get("id") for cell in found)
    code = [cell for cell in found if cell["cell_type"] == "code"]
    assert any(cell["outputs"] for cell in code), "no saved outputs; execute the notebook"
    text = json.dumps([cell["outputs"] for cell in code])
    assert not re.search(r'"output_type": "error"|"name": "stderr"|/home/|/root/|/tmp/|site-packages', text)
    drawn = [cell for cell in code if any(key.startswith("image/") for out in cell["outputs"] for key in out.get("data", {}))]
    assert drawn, "not one figure"


def test_package_and_notebooks_are_in_sync(tmp_path):
    "Export everything anew elsewhere: the same modules, letter by letter."
    copy = tmp_path/"copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "data", "build", "dist", "__pycache__", ".hypothesis"))
    modules = {path.name: path.read_text() for path in (copy/"gcutmix").glob("*.py")}
    for path in (copy/"gcutmix").glob("*.py"):
        if path.name != "__init__.py": path.unlink()
    run("nbdev_export", cwd=copy)
    assert {path.name: path.read_text() for path in (copy/"gcutmix").glob("*.py")} == modules


def test_notebooks_are_clean(tmp_path):
    "nbdev_clean would change nothing."
    for name in NOTEBOOKS:
        shutil.copy(ROOT/"nbs"/name, tmp_path/name)
        run(sys.executable, "-c", f"from nbdev.clean import nbdev_clean; nbdev_clean({str(tmp_path/name)!r})")
        assert (tmp_path/name).read_text() == (ROOT/"nbs"/name).read_text(), f"{name}: run nbdev_clean"


def test_readme_is_the_index():
    run(sys.executable, ".ci/readme.py", "--check")


def test_links_lead_somewhere():
    for name in NOTEBOOKS:
        text = "".join("".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "markdown")
        for target in re.findall(r"\]\(([\w./-]+\.ipynb)\)", text): assert (ROOT/"nbs"/target).exists(), (name, target)
