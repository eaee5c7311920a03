"Figures and the commands that draw all of them."
import subprocess

import pytest
from conftest import ROOT

from gcutmix.study.figures import plot_curves
from gcutmix.study.tables import markdown, read_results, table
from gcutmix.training import make_preset, recipe

RESULTS = ROOT/"results"
DRAWN = [f"pedestrians-{name}" for name in ("curves.svg", "k.svg", "cmc.svg", "cues.svg",
         "occlusion.svg", "mix.png", "attention.png", "ranked.png")]


def test_curves_of_seeds_that_were_tested_after_different_epochs():
    runs = []
    for seed, epochs in enumerate(((2, 4), (4,))):
        config = make_preset("demo", "pedestrians", variant="G", seed=seed)
        history = [dict(epoch=e, rank1=e/10, mAP=e/10) for e in epochs]
        runs.append(dict(recipe=recipe(config), history=history))
    line = next(l for l in plot_curves(runs).axes[0].lines if l.get_label() == "G")
    assert line.get_xydata().tolist() == [[2, 20], [4, 40]]


def tables(results, out):
    command = ["gcutmix_tables", "--results", results, "--out", out]
    return subprocess.run(command, capture_output=True, text=True, cwd=out.parent)


def test_tables_of_a_folder_that_is_not_there(tmp_path):
    done = tables(tmp_path/"none", tmp_path/"tables")
    assert done.returncode and "no folder" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path/"tables").exists()


def test_tables_of_one_folder_of_results(tmp_path):
    done = tables(RESULTS/"pedestrians", tmp_path/"tables")
    held = len(read_results(RESULTS/"pedestrians"))
    assert done.returncode and f"itself holds {held} results" in done.stderr


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "What the command says, and the folder that it drew from the committed files."
    out = tmp_path_factory.mktemp("drawn")/"tables"
    done = tables(RESULTS, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, out


def test_tables_of_the_committed_files(drawn):
    said, out = drawn
    folders = [f for f in RESULTS.iterdir() if f.is_dir() and not f.name.endswith("-validation")]
    assert f"{sum(len(read_results(folder)) for folder in folders)} results" in said
    text = (out/"tables.md").read_text()
    rows = table(read_results(RESULTS/"pedestrians"), "3", "pedestrians")
    assert markdown(rows) in text and "validation" not in text


def test_figures_of_the_committed_files(drawn):
    sizes = {path.name: path.stat().st_size for path in drawn[1].glob("*.*g")}
    assert {*DRAWN, "differences.svg"} <= set(sizes)
    assert max(sizes.values()) <= 150_000, sizes
