"The campaign: what is missing, what is interrupted, what two shells do."
import subprocess

import numpy as np
import pytest
from conftest import killed_at
from safetensors.torch import load_file

from gcutmix.base.files import read_json, write_json
from gcutmix.base.locks import locked
from gcutmix.study.changes import by_change
from gcutmix.study.paper import cell_of
from gcutmix.study.runs import cells, missing, plan, reproduce, run_one, shortened
from gcutmix.study.tables import read_results
from gcutmix.training import learning_rate, make_preset, run_paths


ALL = len(cells(make_preset("demo", "people"))) # runs behind all tables, one seed


def words(people, out, *more):
    "The command line of a small campaign."
    return ["gcutmix_reproduce", "--dataset", "people", "--data-root", str(people), "--preset",
            "demo", "--epochs", "4", "--device", "cpu", "--out", str(out), *more]


def reproduced(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_next_takes_one_cell_after_the_other(people, tmp_path):
    out = tmp_path/"results"
    for expected in (["G"], ["BDB3", "G"], ["BDB3", "G", "PC2"]):
        text = reproduced(*words(people, out, "--next"))
        assert sorted(cell_of(r["recipe"]) for r in read_results(out)) == expected
    assert f"3 of {ALL}: PC2-tiny-s0" in text and f"3 of {ALL} runs have a result" in text
    assert "left" in text


@pytest.mark.slow
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


@pytest.mark.parametrize("option", ["--root", "--data-root", "--data_root"])
def test_root_is_data_root(option, people, tmp_path):
    command = words(people, tmp_path/"results", "--budget", "0")
    command = [option if word == "--data-root" else word for word in command]
    assert f"0 of {ALL} runs have a result" in reproduced(*command)


@pytest.mark.slow
def test_no_weights_are_not_the_presets_weights(people, tmp_path):
    tiny = "--preset", "paper", "--backbone", "tiny", "--epochs", "1", "--next"
    command = words(people, tmp_path/"results", *tiny)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "nobody publishes weights of tiny" in done.stderr
    reproduced(*command, "--weights", "none")
    assert [r["recipe"]["weights"] for r in read_results(tmp_path/"results")] == [None]


def test_a_mistake_is_told_in_one_line(people, tmp_path):
    command = words(people, tmp_path, "--table", "7")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "expected 2, 3, 4, fig3, matters or tuned" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_shell_takes_the_next_run(people, tmp_path):
    base = make_preset("demo", "people", root=people, out=tmp_path, epochs=1, p=4)
    first = plan(base)[0]
    with locked(run_paths(first)):
        assert run_one(first, quiet=True) is None
        reproduce("people", people, preset="demo", epochs=1, out=tmp_path, next=True, budget=1)
    assert missing([first]) # the one that is locked was left to the other
    assert [cell_of(r["recipe"]) for r in read_results(tmp_path)] == ["BDB3"]
    assert run_one(first, quiet=True).metrics is not None
    assert not list(tmp_path.glob("*.lock*"))


def test_a_budget_of_nothing_runs_nothing(people, tmp_path):
    reproduce("people", people, preset="demo", out=tmp_path, budget=0)
    assert not list(tmp_path.glob("*"))


def test_other_settings_are_not_taken_for_the_same_cell(people, tmp_path):
    reproduce("people", people, preset="demo", epochs=1, out=tmp_path, next=True)
    first = plan(make_preset("demo", "people", root=people, out=tmp_path))[0]
    assert run_one(shortened(first, 1), quiet=True).metrics is not None
    with pytest.raises(ValueError, match="epochs 1, now 2.*Choose another"):
        run_one(shortened(first, 2), quiet=True)
    usual = dict(preset="demo", out=tmp_path)
    others = (dict(epochs=2),
              dict(epochs=1, preset="released", backbone="tiny", weights="none"))
    for other in others:
        with pytest.raises(ValueError, match="made with other settings"):
            reproduce("people", people, **(usual | other))
    with pytest.raises(ValueError, match="expected 1 or more"):
        reproduce("people", people, **usual, epochs=0)


def test_a_result_that_is_older_than_a_setting_is_done(people, tmp_path):
    reproduce("people", people, preset="demo", epochs=1, out=tmp_path, next=True)
    config = shortened(plan(make_preset("demo", "people", root=people, out=tmp_path))[0], 1)
    result = read_json(run_paths(config).result)
    del result["recipe"]["random_erasing"]
    write_json(run_paths(config).result, result)
    assert not missing([config])


def test_released_recipe_has_its_own_k():
    found = cells(make_preset("released"))
    assert found["PC2"].k == found["PC2-positive"].k == 3
    assert {"PC2-k8", "PC2-k2"} < set(found)
    assert [c.k for c in plan(make_preset("released"), "3")] == [3]*5
    assert cells(make_preset("paper"))["PC2"].k == 8


def test_what_matters_has_a_plan_and_a_folder_of_its_own(people, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    how = dict(preset="demo", table="matters", epochs=1)
    reproduce("people", people, **how, next=True)
    assert "1 of 17 runs have a result in results/what-matters/people" in capsys.readouterr().out
    folder = tmp_path/"results"/"what-matters"/"people"
    assert [path.name for path in folder.glob("*.json")] == ["paper-s0.json"]
    base = shortened(make_preset("demo", "people", root=people), 1)
    found = by_change(read_results(folder), base)
    assert {name: list(runs) for name, runs in found.items() if runs} == {"paper": [0]}
    assert not any(by_change(read_results(folder), shortened(base, 2)).values())


def test_another_length_keeps_the_shape_of_the_schedule():
    paper = make_preset("paper")
    short = shortened(paper, 100)
    assert (short.warmup, short.decay_at) == (10, (40, 60)) and shortened(short, 500) == paper
    rates = [learning_rate(short, e)/learning_rate(paper, 5*e + 4) for e in range(100)]
    assert np.allclose(rates, 1)


def test_cells_follow_the_papers_text():
    cuhk, duke = (cells(make_preset("paper", d)) for d in ("cuhk03-detected", "dukemtmc-reid"))
    assert (cuhk["PC2"].k, duke["PC2"].k) == (8, 6) and len(cuhk) == len(duke) == ALL
    assert list(cuhk)[:5] == ["G", "BDB3", "PC2", "PC1", "BDB"]
    assert "HA-CNN" not in list(cuhk)[:12] and "PCB" in list(cuhk)[12:] # then the rivals
    assert {c.partner for c in cuhk.values()} == {"negative", "positive", "any"}
