"The campaign: what is missing, what is interrupted, what two shells do; and tables that show files and nothing else."
import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from filelock import FileLock
from safetensors.torch import load_file
from scipy import stats

from conftest import ROOT, killed_at
from gcutmix.experiments import (PAPER, PRESETS, TABLES, by_setting, cell_of, cells, gcutmix_raw, interval, markdown, missing, overlap_rows, plan,
                                 plot_curves, read_attention, read_results, reproduce, run_one, shortened, table)
from gcutmix.training import learning_rate, make_preset, recipe, run_paths

RESULTS = ROOT/"results"


def words(people, out, *more):
    "The command line of a small campaign."
    return ["gcutmix_reproduce", "--dataset", "people", "--data-root", str(people), "--preset", "demo", "--epochs", "4",
            "--device", "cpu", "--out", str(out), *more]


def reproduced(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_next_takes_one_cell_after_the_other(people, tmp_path):
    out = tmp_path/"results"
    for expected in (["G"], ["BDB3", "G"], ["BDB3", "G", "PC2"]):
        text = reproduced(*words(people, out, "--next"))
        assert sorted(cell_of(r["recipe"]) for r in read_results(out)) == expected
    assert "3 of 12: PC2-tiny-s0" in text and "3 of 12 runs have a result" in text and "left" in text


def test_next_killed_and_started_again_gives_the_same_numbers(people, tmp_path):
    whole, cut = tmp_path/"whole", tmp_path/"cut"
    command = words(people, cut, "--next")
    reproduced(*words(people, whole, "--next"))
    killed_at(3, command)
    assert not read_results(cut) and list(cut.glob("*.checkpoint.pt"))
    reproduced(*command)
    a, b = (load_file(folder/"G-tiny-s0.safetensors") for folder in (whole, cut))
    assert all((a[key] == b[key]).all() for key in a)
    a, b = (read_results(folder)[0] for folder in (whole, cut))
    assert a["metrics"] == b["metrics"]
    assert [e["loss"] for e in a["history"]] == [e["loss"] for e in b["history"]]


def test_root_is_data_root(people, tmp_path):
    command = [word.replace("--data-root", "--root") for word in words(people, tmp_path/"results", "--budget", "0")]
    assert "0 of 12 runs have a result" in reproduced(*command)


def test_a_second_shell_takes_the_next_run(people, tmp_path):
    base = make_preset("demo", "people", root=people, out=tmp_path, epochs=1, p=4)
    first = plan(base)[0]
    with FileLock(run_paths(first).result.with_suffix(".lock")):
        assert run_one(first, quiet=True) is None
        reproduce("people", people, preset="demo", epochs=1, out=tmp_path, next=True, budget=1)
    assert missing([first]) # the one that is locked was left to the other
    assert [cell_of(r["recipe"]) for r in read_results(tmp_path)] == ["BDB3"]
    assert run_one(first, quiet=True).metrics is not None and not list(tmp_path.glob("G-*.lock"))


def test_a_budget_of_nothing_runs_nothing(people, tmp_path):
    reproduce("people", people, preset="demo", out=tmp_path, budget=0)
    assert not list(tmp_path.glob("*"))


def test_other_settings_are_not_taken_for_the_same_cell(people, tmp_path):
    reproduce("people", people, preset="demo", epochs=1, out=tmp_path, next=True)
    one, two = (shortened(plan(make_preset("demo", "people", root=people, out=tmp_path))[0], n) for n in (1, 2))
    assert run_one(one, quiet=True).metrics is not None
    with pytest.raises(ValueError, match="epochs 1, now 2.*Choose another"): run_one(two, quiet=True)
    for other in (dict(epochs=2), dict(epochs=1, preset="released", backbone="tiny", weights="none")):
        with pytest.raises(ValueError, match="made with other settings"): reproduce("people", people, **(dict(preset="demo", out=tmp_path) | other))
    with pytest.raises(ValueError, match="expected 1 or more"): reproduce("people", people, preset="demo", epochs=0, out=tmp_path)


def test_two_results_of_one_seed_are_no_cell():
    results = read_results(RESULTS/"pedestrians")
    with pytest.raises(ValueError, match="two results of PC2 "): table(results + [r for r in results if cell_of(r["recipe"]) == "PC2"][:1], "4", "pedestrians")


def test_a_raw_result_is_not_replaced_by_another(people, tmp_path):
    raw = lambda *size: gcutmix_raw("people", people, "tiny", "none", size, tmp_path)
    raw(48, 16)
    made = (tmp_path/"raw-tiny.json").read_text()
    with pytest.raises(ValueError, match="other settings"): raw(96, 32)
    assert (tmp_path/"raw-tiny.json").read_text() == made
    raw(48, 16)
    assert json.loads((tmp_path/"raw-tiny.json").read_text())["metrics"] == json.loads(made)["metrics"]


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path/"G-tiny-s0.json").write_text("{\"recipe\": ")
    with pytest.raises(ValueError, match="G-tiny-s0.json.*delete"): read_results(tmp_path)


def test_released_recipe_has_its_own_k():
    found = cells(make_preset("released"))
    assert found["PC2"].k == found["PC2-positive"].k == 3 and {"PC2-k8", "PC2-k2"} < set(found)
    assert [c.k for c in plan(make_preset("released"), "3")] == [3]*5 and cells(make_preset("paper"))["PC2"].k == 8


def test_another_length_keeps_the_shape_of_the_schedule():
    paper = make_preset("paper")
    short = shortened(paper, 100)
    assert (short.warmup, short.decay_at) == (10, (40, 60)) and shortened(short, 500) == paper
    rates = [learning_rate(short, e)/learning_rate(paper, 5*e + 4) for e in range(100)]
    assert np.allclose(rates, 1)


def test_curves_of_seeds_that_were_tested_after_different_epochs():
    runs = [dict(recipe=json.loads(json.dumps(recipe(make_preset("demo", "pedestrians", variant="G", seed=seed)))),
                 history=[dict(epoch=e, rank1=e/10, mAP=e/10) for e in epochs])
            for seed, epochs in enumerate(((2, 4), (4,)))]
    line = next(l for l in plot_curves(runs).axes[0].lines if l.get_label() == "G")
    assert line.get_xydata().tolist() == [[2, 20], [4, 40]]


def test_more_than_ten_seeds_get_a_slightly_wider_interval():
    values = np.random.default_rng(0).normal(80, 2, 12)
    exact = stats.t.ppf(.975, 11)*stats.sem(values)
    assert exact < interval(values)[1] < 1.04*exact


def test_tables_of_a_folder_that_is_not_there(tmp_path):
    done = subprocess.run(["gcutmix_tables", "--results", str(tmp_path/"none")], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode and "no folder" in done.stderr and not (tmp_path/"runs").exists()


@pytest.mark.parametrize("n", range(2, 11))
def test_interval_is_students(n):
    values = np.random.default_rng(n).normal(80, 2, n)
    mean, half = interval(values)
    low, high = stats.t.interval(.95, n - 1, values.mean(), stats.sem(values))
    assert np.allclose((mean - half, mean + half), (low, high), rtol=1e-4)


COMMITTED = [path for folder in sorted(RESULTS.iterdir())
             if folder.is_dir() and read_results(folder) and not folder.name.endswith("-validation")
             for path in sorted(folder.glob("[GBP]*.json"))]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_committed_results_are_named_after_their_cell(path):
    result = json.loads(path.read_text())
    made = result["recipe"]
    dataset, _, rate = path.parent.name.partition("-lr") # a folder without a rate holds the preset's
    assert path.stem == f"{cell_of(made)}-{made['backbone']}-s{made['seed']}" and dataset == made["dataset"]
    assert made["lr"] == (float(rate) if rate else make_preset(PRESETS[dataset]).lr)
    assert len(result["history"]) == made["epochs"] and result["history"][-1]["rank1"] == result["metrics"]["rank1"]
    assert "-changed" not in result["code"]


@pytest.mark.parametrize("path", COMMITTED[::7], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_deleting_a_result_empties_exactly_its_cells(path, tmp_path):
    shutil.copytree(path.parent, tmp_path/"results")
    cell = cell_of(json.loads(path.read_text())["recipe"])
    for other in (tmp_path/"results").glob(f"{cell}-*.json"):
        if cell_of(json.loads(other.read_text())["recipe"]) == cell: other.unlink()
    dataset, before, after = path.parent.name, read_results(path.parent), read_results(tmp_path/"results")
    group = next(iter(by_setting(before)))
    before, after = (by_setting(rows).get(group, []) for rows in (before, after))
    for number in "234":
        pairs = zip(table(before, number, dataset), table(after, number, dataset))
        for (name, own), (a, b) in zip(TABLES[number].items(), pairs):
            assert (a == b) == (own != cell)
            if own == cell: assert b["rank-1"] == b["mAP"] == b["seeds"] == ""


def test_settings_were_compared_on_training_people():
    runs = read_results(RESULTS/"cuhk03-p1-detected-validation")
    assert len(runs) > 1 and {r["recipe"]["dataset"] for r in runs} == {"cuhk03-p1-detected-validation"}
    assert len({json.dumps(r["data"], sort_keys=True) for r in runs}) == 1 # the same people held out
    assert all(len(r["history"]) == r["recipe"]["epochs"] and "-changed" not in r["code"] for r in runs)


def test_tables_of_the_committed_files(tmp_path):
    text = reproduced("gcutmix_tables", "--results", str(RESULTS), "--out", str(tmp_path/"tables"))
    assert f"{len(COMMITTED)} results" in text
    assert markdown(table(read_results(RESULTS/"pedestrians"), "3", "pedestrians")) in (tmp_path/"tables"/"tables.md").read_text()
    assert "validation" not in (tmp_path/"tables"/"tables.md").read_text()
    sizes = {path.name: path.stat().st_size for path in (tmp_path/"tables").glob("*.*g")}
    assert {"pedestrians-curves.svg", "pedestrians-k.svg", "pedestrians-cmc.svg", "pedestrians-mix.png",
            "pedestrians-attention.png", "pedestrians-ranked.png"} <= set(sizes)
    assert max(sizes.values()) <= 150_000, sizes


def test_the_printed_tables_have_the_papers_rows():
    assert [len(PAPER[n]["cuhk03-detected"]) for n in "234"] == [13, 5, 3]
    assert PAPER["2"]["market1501"]["Ours"] == (94.5, 85.2) and PAPER["2"]["cuhk03-labeled"]["AOS"] == (None, None)
    best = {d: max(rows, key=lambda r: rows[r][0] or 0) for d, rows in PAPER["3"].items()}
    assert best == {"cuhk03-detected": "+ PC2", "dukemtmc-reid": "+ BDB2 (BDB*3)"} # the paper loses to its rival on Duke


def test_cells_follow_the_papers_text():
    cuhk, duke = (cells(make_preset("paper", name)) for name in ("cuhk03-detected", "dukemtmc-reid"))
    assert (cuhk["PC2"].k, duke["PC2"].k) == (8, 6) and len(cuhk) == len(duke) == 12
    assert list(cuhk)[:5] == ["G", "BDB3", "PC2", "PC1", "BDB"] and {c.partner for c in cuhk.values()} == {"negative", "positive", "any"}


def test_overlaps_of_other_partners_stay_apart():
    attention = read_attention(RESULTS/"pedestrians")
    mine = next(r for r in attention if r["recipe"]["variant"] == "PC2")
    other = mine | {"recipe": mine["recipe"] | {"partner": "any"}}
    rows = overlap_rows([mine, other])
    assert [row["network"] for row in rows] == ["PC2"]*3 + ["PC2-any"]*3
    assert {row["networks"] for row in rows} == {"1"}
