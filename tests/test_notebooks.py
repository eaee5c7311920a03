"Every notebook runs, each in a process of its own; notebooks, package and README are in sync."
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest
from nbdev.process import NBProcessor
from nbdev.processors import _do_eval

from conftest import ROOT

NBS, PACKAGE = ROOT/"nbs", ROOT/"gcutmix"
NOTEBOOKS = sorted(str(path.relative_to(NBS)) for path in NBS.rglob("[!_]*.ipynb")
                   if ".ipynb_checkpoints" not in path.parts)
PARTS = {"main line": range(11), "use it": range(11, 18), "study": range(18, 30),
         "rivals": range(30, 40), "workshop": [*range(40, 60), *range(70, 80), *range(90, 100)],
         "speed": range(60, 70), "faults": range(80, 90)}
# about words, so there is nothing to draw
WITHOUT_FIGURE = [f"{name}.ipynb" for name in (
    "45_console", "54_commands", "55_devices", "71_locks", "74_fingerprints", "77_folders",
    "78_readers", "81_mishaps", "88_cards", "89_states", "95_identities", "97_machine",
    "98_progress", "14_classification", "17_doctor")]


def run(*command, cwd=ROOT, **env):
    "Run a command; its output is shown where it fails."
    done = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True,
                          timeout=900)
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{said}"
    return done.stdout


def cells(name): return json.loads((NBS/name).read_text())["cells"]


def source(cell): return "".join(cell["source"])


def number(name): return int(re.match(r"\d+", name)[0])


def part(name): return number(name) % 100 # a part that is full goes on a hundred later: 130_...


def exports(name):
    "The module that a notebook exports, with dots; None if it exports none."
    lines = "\n".join(source(cell) for cell in cells(name) if cell["cell_type"] == "code")
    found = re.findall(r"^#\| default_exp (\S+)$", lines, flags=re.M)
    return found[0] if found else None


def test_the_main_line_is_whole_and_every_chapter_has_a_part():
    numbered = [name for name in NOTEBOOKS if name != "index.ipynb"]
    assert [number(name) for name in numbered][:11] == list(PARTS["main line"])
    assert "10_train_cuhk03.ipynb" in NOTEBOOKS
    known = {n for part in PARTS.values() for n in part}
    assert {part(name) for name in numbered} <= known
    assert len({number(name) for name in numbered}) == len(numbered)


def test_every_module_has_one_chapter():
    modules = [str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
               for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "_modidx.py")]
    assert sorted(filter(None, map(exports, NOTEBOOKS))) == sorted(modules)


def test_wings_stand_in_their_parts():
    wings = {"study": "study", "bench": "speed", "base": "workshop", "drawn": "workshop",
             "rivals": "rivals"}
    for name in NOTEBOOKS:
        wing = (exports(name) or "").split(".")[0]
        # Table 2 and its costs are read after the rivals; letters, where they are used
        places = [*PARTS[wings[wing]], 38, 39, *PARTS["faults"]] if wing in wings else []
        assert wing not in wings or part(name) in [*places, *PARTS["use it"]], name


# A fork of a server that has imported them begins at once: three seconds less for each notebook.
FORKS = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
if hasattr(os, "fork"):
    FORKS.set_forkserver_preload(["torch", "torchvision", "nbdev.test", "matplotlib.pyplot"])


def play(name, flags, folder):
    "In a process of its own: what the command nbdev_test does."
    from nbdev.test import nbdev_test
    said = os.open(folder/"said", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2): os.dup2(said, stream)
    os.chdir(ROOT)
    os.environ.update(MPLBACKEND="Agg", TMPDIR=str(folder))
    nbdev_test(path=f"nbs/{name}", n_workers=0, do_print=True, flags=flags)


def check_runs(name, folder, flags=""):
    process = FORKS.Process(target=play, args=(name, flags, folder))
    process.start()
    process.join(900)
    process.kill()
    said = (folder/"said").read_text(errors="replace")
    assert process.exitcode == 0 and "Success" in said, said[-6000:]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, tmp_path):
    "nbdev_test, without cells flagged in settings.ini; a process each, so that no state leaks."
    check_runs(name, tmp_path)


SLOW = [name for name in NOTEBOOKS if "#| slow" in (NBS/name).read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_notebook_runs_with_its_slow_cells(name, tmp_path):
    check_runs(name, tmp_path, "slow")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_fit_to_be_read(name):
    "Outputs are saved, ids are there, nothing of a machine or of an error shows."
    found = cells(name)
    assert all(cell.get("id") for cell in found)
    code = [cell for cell in found if cell["cell_type"] == "code"]
    assert any(cell["outputs"] for cell in code), "no saved outputs; execute the notebook"
    text = json.dumps([cell["outputs"] for cell in code])
    private = r'"output_type": "error"|"name": "stderr"|/home/|/root/|/tmp/|/work/|site-packages'
    assert not re.search(private, text)
    for before, out in (pair for cell in code for pair in pairwise(cell["outputs"])):
        assert "name" not in out or out["name"] != before.get("name"), "join them: JupyterLab does"
    kinds = {kind for cell in code for out in cell["outputs"] for kind in out.get("data", {})}
    drawn = any(kind.startswith("image/") for kind in kinds)
    assert drawn != (name in WITHOUT_FIGURE), "not one figure"


def test_notebooks_know_their_kernel():
    "Without its language, or with another name, JupyterLab opens a notebook as changed."
    found = [json.loads((NBS/name).read_text())["metadata"] for name in NOTEBOOKS]
    assert all(metadata == found[0] for metadata in found)
    kernel = dict(display_name="python3", language="python", name="python3")
    assert found[0]["kernelspec"] == kernel and found[0]["language_info"]["version"]


def test_the_entrance_hides_its_code():
    code = [cell for cell in cells("index.ipynb") if cell["cell_type"] == "code"]
    assert code and all(cell["metadata"]["jupyter"]["source_hidden"] for cell in code)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_chapters_are_called_by_their_names(name):
    "Numbers change when a chapter comes in between."
    for cell in cells(name):
        assert not re.search(r"\b[Cc]hapters? \d|\b[Aa]ppendix \d", source(cell)), source(cell)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_code_is_narrow(name):
    for cell in cells(name):
        if cell["cell_type"] == "code":
            assert not [line for line in source(cell).splitlines() if len(line) > 100]


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.filterwarnings("error:Found cells containing imports")
def test_imports_stand_in_cells_of_their_own(name):
    "nbdev_docs executes cells with an import and nothing before them: work in them falls over."
    for cell in NBProcessor(NBS/name).nb.cells: _do_eval(cell)


LEFT_OUT = shutil.ignore_patterns(".venv", ".git", "runs", "data", "build", "dist", "local",
                                  "results", "__pycache__", ".hypothesis", ".pytest_cache")


def texts(package):
    return {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}


def exported(copy):
    "What nbdev_export makes in a copy whose modules, in all wings, were deleted."
    for path in (copy/"gcutmix").rglob("*.py"):
        if path.name != "__init__.py": path.unlink()
    run("nbdev_export", cwd=copy)
    return texts(copy/"gcutmix")


def test_package_and_notebooks_are_in_sync(tmp_path):
    "Export everything anew elsewhere: the same modules, letter by letter."
    shutil.copytree(ROOT, tmp_path/"copy", ignore=LEFT_OUT)
    before = texts(tmp_path/"copy"/"gcutmix")
    assert {path.split("/")[0] for path in before} >= {"base", "study", "bench", "model.py"}
    assert exported(tmp_path/"copy") == before


def test_notebooks_are_clean(tmp_path):
    "nbdev_clean would change nothing."
    for name in NOTEBOOKS: shutil.copy(NBS/name, tmp_path/name)
    code = "import sys; from nbdev.clean import nbdev_clean; [nbdev_clean(f) for f in sys.argv[1:]]"
    run(sys.executable, "-c", code, *(tmp_path/name for name in NOTEBOOKS))
    for name in NOTEBOOKS:
        assert (tmp_path/name).read_text() == (NBS/name).read_text(), f"{name}: run nbdev_clean"


def test_readme_is_the_index():
    run(sys.executable, ".ci/readme.py", "--check")


def test_the_index_names_every_chapter():
    text = "\n".join(source(cell) for cell in cells("index.ipynb"))
    assert not [name for name in NOTEBOOKS if name != "index.ipynb" and f"({name})" not in text]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_lead_somewhere(name):
    text = "\n".join(source(cell) for cell in cells(name) if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([\w./-]+\.ipynb)\)", text):
        assert ((NBS/name).parent/target).exists(), target


def test_notebook_10_was_saved_with_drawn_people():
    "Nobody's pictures but the embedded ones are in the repository."
    text = json.dumps([cell.get("outputs", []) for cell in cells("10_train_cuhk03.ipynb")])
    assert "pedestrians: tiny at 96x32" in text
    assert "pictures of real people" not in text
