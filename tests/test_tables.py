"Tables show files and nothing else; intervals are Student's."
import shutil

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from gcutmix.base.files import read_json
from gcutmix.study.paper import TABLES, cell_of
from gcutmix.study.runs import PRESETS
from gcutmix.study.tables import (by_setting, interval, overlap_rows, read_attention, read_results,
                                  setting, table)
from gcutmix.training import make_preset

RESULTS = ROOT/"results"


def committed():
    "The files behind the tables."
    for folder in sorted(RESULTS.iterdir()):
        if not folder.is_dir() or folder.name.endswith("-validation"): continue
        if read_results(folder): yield from sorted(folder.glob("[GBP]*.json"))


COMMITTED = list(committed())


def name_of(path): return f"{path.parent.name}-{path.stem}"


def test_two_results_of_one_seed_are_no_cell():
    results = read_results(RESULTS/"pedestrians")
    again = [r for r in results if cell_of(r["recipe"]) == "PC2"][:1]
    with pytest.raises(ValueError, match="two results of PC2 "):
        table(results + again, "4", "pedestrians")


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path/"G-tiny-s0.json").write_text("{\"recipe\": ")
    with pytest.raises(ValueError, match="G-tiny-s0.json.*delete"): read_results(tmp_path)


def test_more_than_ten_seeds_get_a_slightly_wider_interval():
    values = np.random.default_rng(0).normal(80, 2, 12)
    exact = stats.t.ppf(.975, 11)*stats.sem(values)
    assert exact < interval(values)[1] < 1.04*exact


@pytest.mark.parametrize("n", range(2, 11))
def test_interval_is_students(n):
    values = np.random.default_rng(n).normal(80, 2, n)
    mean, half = interval(values)
    low, high = stats.t.interval(.95, n - 1, values.mean(), stats.sem(values))
    assert np.allclose((mean - half, mean + half), (low, high), rtol=1e-4)


@pytest.mark.parametrize("path", COMMITTED, ids=name_of)
def test_committed_results_are_named_after_their_cell(path):
    result = read_json(path)
    made = result["recipe"]
    # a folder without a rate holds the preset's
    dataset, _, rate = path.parent.name.partition("-lr")
    assert path.stem == f"{cell_of(made)}-{made['backbone']}-s{made['seed']}"
    assert dataset == made["dataset"]
    assert made["lr"] == (float(rate) if rate else make_preset(PRESETS[dataset]).lr)
    history = result["history"]
    assert len(history) == made["epochs"] and history[-1]["rank1"] == result["metrics"]["rank1"]
    assert "-changed" not in result["code"]


@pytest.mark.parametrize("path", COMMITTED[::7], ids=name_of)
def test_deleting_a_result_empties_exactly_its_cells(path, tmp_path):
    shutil.copytree(path.parent, tmp_path/"results")
    cell = cell_of(read_json(path)["recipe"])
    for other in (tmp_path/"results").glob(f"{cell}-*.json"):
        if cell_of(read_json(other)["recipe"]) == cell: other.unlink()
    dataset, before, after = path.parent.name, *map(read_results, (path.parent, tmp_path/"results"))
    group = next(iter(by_setting(before)))
    before, after = (by_setting(rows).get(group, []) for rows in (before, after))
    for number in "234":
        pairs = zip(table(before, number, dataset), table(after, number, dataset))
        for (name, own), (a, b) in zip(TABLES[number].items(), pairs):
            assert (a == b) == (own != cell)
            if own == cell: assert b["rank-1"] == b["mAP"] == b["seeds"] == ""


def test_settings_were_compared_on_training_people():
    runs = read_results(RESULTS/"cuhk03-p1-detected-validation")
    assert len(runs) > 1
    assert {r["recipe"]["dataset"] for r in runs} == {"cuhk03-p1-detected-validation"}
    assert all(r["data"] == runs[0]["data"] for r in runs) # the same people held out
    for r in runs:
        assert len(r["history"]) == r["recipe"]["epochs"] and "-changed" not in r["code"]


@pytest.mark.parametrize("key", ["random_erasing", "cutout_share", "channels_last"])
def test_a_setting_that_came_later_changes_no_title(key):
    result = read_results(RESULTS/"pedestrians")[0]
    defaults = dict(random_erasing=0., cutout_share=.5, channels_last=True)
    older = {k: v for k, v in result["recipe"].items() if k != key}
    newer = older | {key: defaults[key]}
    older, newer = (result | {"recipe": made} for made in (older, newer))
    assert list(by_setting([result, older, newer])) == [setting(result)]


def test_overlaps_of_other_partners_stay_apart():
    attention = read_attention(RESULTS/"pedestrians")
    mine = next(r for r in attention if r["recipe"]["variant"] == "PC2")
    other = mine | {"recipe": mine["recipe"] | {"partner": "any"}}
    rows = overlap_rows([mine, other])
    assert [row["network"] for row in rows] == ["PC2"]*3 + ["PC2-any"]*3
    assert {row["networks"] for row in rows} == {"1"}
