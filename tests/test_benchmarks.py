"The benchmarks compare equal things, and their files can be read."
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from conftest import ROOT
from gcutmix import cutmix
from gcutmix.base.console import UNSET, given
from gcutmix.bench import levers, ranking
from gcutmix.bench.counters import peak_memory
from gcutmix.bench.levers import measure_levers
from gcutmix.bench.methods import measure_methods
from gcutmix.bench.parts import PARTS, bench_command, gcutmix_bench, measure
from gcutmix.bench.profile import Stopwatch, stretches
from gcutmix.bench.races import Bench
from gcutmix.bench.ranking import crowd, rank_by_argsort, rank_by_counting, torchreid_rankings
from gcutmix.bench.results import benchmark_tables, claims, plot_benchmarks, read_benchmarks
from gcutmix.bench.rivals import random_masks, textbook, textbook_mask
from gcutmix.bench.step import Job, step_flop
from gcutmix.blocks import block_mask
from gcutmix.evaluation import distance_to

SIZES = dict(device="cpu", backbone="tiny", size=(96, 32), repeats=1, images=6, queries=20,
             gallery=300, dim=16, growth=(100, 200))
SMALL = Bench(batch=8, **SIZES)


OPTIONS = [dict(), dict(block=(6, 4), k=3), dict(partner="any", channels_last=False)]

@pytest.mark.parametrize("options", OPTIONS)
def test_textbook_step_is_our_step(options):
    "The same blocks, logits, loss, gradients, and weights after three steps of Adam."
    ours, naive = Job(SMALL, cam_grad="batch", **options), Job(SMALL, rival=textbook, **options)
    for a, b in zip(ours.model(*ours.inputs()), naive.model(*naive.inputs())):
        torch.testing.assert_close(a.logits, b.logits)
        if a.mask is None: continue
        assert b.mask.shape == b.features.shape
        assert torch.equal(a.mask.expand_as(b.mask), b.mask)
    for _ in range(3):
        ours()
        naive()
    losses = [torch.stack(job.losses) for job in (ours, naive)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    for p, q in zip(ours.model.parameters(), naive.model.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_textbook_leaves_no_gradient_and_moves_statistics_once():
    naive = Job(SMALL, rival=textbook)
    naive.loss()
    assert all(p.grad is None for p in naive.model.parameters())
    norms = [m for m in naive.model.modules() if hasattr(m, "num_batches_tracked")]
    assert {int(m.num_batches_tracked) for m in norms} == {1}


def test_textbook_mask_is_block_mask():
    "Also when scores are equal: the lower index first."
    options = Job(SMALL).model.options
    cams = torch.cat([torch.rand(5, 24, 8), torch.zeros(1, 24, 8), torch.ones(1, 24, 8)])
    masks = [textbook_mask(cam, torch.empty(1, 3, 24, 8), options) for cam in cams]
    expected = block_mask(cams, options.k).expand(-1, 3, -1, -1)
    assert torch.equal(torch.stack(masks), expected)


def test_jobs_with_the_same_settings_do_the_same():
    one, two, dice = Job(SMALL), Job(SMALL), Job(SMALL, rival=random_masks)
    for job in (one, two, one, two): job()
    assert one.losses == two.losses and len(set(map(float, one.losses))) == 2
    ours, theirs = (job.model(*job.inputs())[1].mask for job in (one, dice))
    assert not torch.equal(ours, theirs)


def test_operations_of_a_step():
    "Twice the pixels, nearly twice the work."
    assert step_flop(replace(SMALL, size=(192, 32))) == pytest.approx(2*step_flop(SMALL), rel=.05)


def test_a_quarter_of_the_blocks_is_cut_out_of_every_map():
    real = replace(SMALL, backbone="mobilenet_v2", size=(192, 64))
    for bench, k in (SMALL, 8), (real, 2):
        job = Job(bench)
        mask = job.model(*job.inputs())[1].mask
        assert job.model.options.k == k and (mask == 0).float().mean() == .25


def test_memory_is_counted():
    x = torch.ones(1000)
    assert peak_memory(lambda: x*2 + 1, "cpu") == (8000, 4000)
    assert peak_memory(lambda: x.split(100), "cpu") == (0, 0)
    assert peak_memory(lambda: torch.cat([x, x]).add_(1).sum(), "cpu") == (8004, 4)


def test_rankings_agree():
    features, qp, qc, gallery, gp, gc = crowd(50, 800, 32)
    distances = (distance_to(gallery)(features)*10).round().numpy() # many ties
    theirs = rank_by_argsort(distances, qp, qc, gp, gc, "stable")
    ours = rank_by_counting(distances.copy(), qp, qc, gp, gc)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert .05 < np.nanmean(theirs) < .95


def fake_torchreid(folder, text):
    (folder/"torchreid/metrics").mkdir(parents=True)
    (folder/"torchreid/__init__.py").write_text("raise ImportError('must not be imported')")
    (folder/"torchreid/metrics/rank.py").write_text(text)
    (folder/"torchreid-9.9.dist-info").mkdir()
    about = "Metadata-Version: 2.1\nName: torchreid\nVersion: 9.9\n"
    (folder/"torchreid-9.9.dist-info/METADATA").write_text(about)


def test_torchreid_is_optional(monkeypatch):
    monkeypatch.setattr(ranking.importlib.util, "find_spec", lambda name: None)
    ways, remark = torchreid_rankings()
    assert ways == {} and "not installed" in remark


EVALUATOR = "IS_CYTHON_AVAI = {}\ndef evaluate_rank(*a, use_cython): return a, .5"

@pytest.mark.parametrize("text, names, remark", [
    ("import nothing_of_this_name", [], "does not load: ModuleNotFoundError"),
    (EVALUATOR.format(False), ["torchreid, Python"], "9.9; its compiled"),
    (EVALUATOR.format(True), ["torchreid, Python", "torchreid, compiled"], "version 9.9")])
def test_torchreid_takes_part_if_it_loads(tmp_path, monkeypatch, text, names, remark):
    fake_torchreid(tmp_path, text)
    monkeypatch.syspath_prepend(str(tmp_path))
    ways, found = torchreid_rankings()
    assert list(ways) == names and remark in found
    assert all(way(*range(5)) == .5 for way in ways.values())


def test_a_lever_that_breaks_is_left_out_with_its_reason(monkeypatch):
    def breaks(model): raise OSError("no compiler in /usr/somewhere\nmore")
    monkeypatch.setitem(levers.LEVERS, "compile", dict(compiled=breaks))
    found = measure_levers(replace(SMALL, levers=("fused", "compile", "graphs")))
    assert found["skipped"] == {"compile": "OSError: no compiler in ...", "graphs": "needs CUDA"}
    assert list(found["comparisons"][0]["seconds"]) == ["default", "fused"]


def test_stretches_cover_a_step():
    job, clock, mix = Job(SMALL), Stopwatch("cpu"), cutmix.mix
    names = list(stretches(job, clock))
    assert names == list(stretches(job, clock))
    assert names[0] == "gather and augment" and names[-1] == "Adam"
    back = "heads, losses, mix, backward", "bottleneck, backward", "backbone, backward"
    assert sorted(back, key=names.index) == list(back)
    assert cutmix.mix is mix and not job.model.backbone._forward_hooks


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    for part in ("step", "evaluation", "growth", "data", "profile"):
        gcutmix_bench(part, out, batch=4, **SIZES)
    gcutmix_bench("levers", out, batch=4, levers=("fused", "allocator"), **SIZES)
    gcutmix_bench("faults", out, batch=4, faults=("deep", "turned"), **SIZES)
    few = partial(measure_methods, variants=("G", "PCB+RPP"))
    with pytest.MonkeyPatch.context() as change:
        change.setitem(PARTS, "methods", few)
        gcutmix_bench("methods", out, batch=16, **SIZES)
    return out


KEYS = {"command", "code", "hardware", "packages", "environment", "settings", "floors", "started",
        "seconds", "facts", "comparisons"}

def test_every_part_writes_a_file(results):
    found = {path.name for path in results.iterdir()}
    assert found == {f"{part}-tiny-cpu.json" for part in PARTS}
    for r in read_benchmarks(results):
        assert KEYS <= set(r)
        batch = 16 if r["part"] == "methods" else 4
        assert r["command"].startswith(f"gcutmix_bench --part {r['part']} --device cpu --batch "
                                       f"{batch} --backbone tiny --size 96x32")
        assert str(results.parent) not in json.dumps(r) and r["floors"]["matrix"] > 0


def test_committed_results_have_the_keys_of_today(results):
    "Top level, comparisons, facts: nothing was renamed."
    today = {r["part"]: r for r in read_benchmarks(results)}
    for r in read_benchmarks(ROOT/"results/benchmarks"):
        new = today[r["part"]]
        assert set(r) == set(new) and list(r["settings"]) == list(new["settings"])
        assert set(r["facts"][0]) == set(new["facts"][0])
        if r["part"] in ("levers", "evaluation"): continue # other levers, and torchreid
        assert [f["what"] for f in r["facts"]] == [f["what"] for f in new["facts"]]
        for c in r["comparisons"]: assert set(c) == set(new["comparisons"][0])


def test_results_are_drawn(results):
    figure = plot_benchmarks(read_benchmarks(results))
    labels = [label for ax in figure.axes for label in ax.get_yticklabels()]
    names = [label.get_text() for label in labels]
    assert names.count("textbook") == 2 and "plain PIL loop" in names
    assert "keeps freed memory" in names
    plt.close(figure)
    assert read_benchmarks(results/"nowhere") == []


def test_five_claims_are_found(results):
    found = claims(read_benchmarks(results))
    titles = [c["title"] for r in found for c in r["comparisons"]]
    assert len(titles) >= 5 and not any("contiguous" in title for title in titles)


def test_tables_tell_command_and_remarks(results):
    text = benchmark_tables(results, "evaluation")
    assert "gcutmix_bench --part evaluation --device cpu --batch 4" in text
    assert "argsort of whole rows" in text and "torchreid: " in text


def test_a_file_without_a_setting_means_its_default(results, tmp_path):
    old = json.loads((results/"growth-tiny-cpu.json").read_text())
    del old["settings"]["levers"], old["settings"]["backbone"]
    (tmp_path/"growth-cpu.json").write_text(json.dumps(old))
    read = read_benchmarks(tmp_path)[0]["settings"]
    assert read["backbone"] == "resnet50" and read["levers"] == ()


def test_command_says_no_folder():
    bench = Bench(device="cpu", dataset="market1501", root="/secret")
    assert bench_command("data", bench) == \
        "gcutmix_bench --part data --device cpu --dataset market1501 --root FOLDER"


def test_stored_commands_are_understood_and_written_alike():
    for r in read_benchmarks(ROOT/"results/benchmarks"):
        asked = given(gcutmix_bench.parser(), r["command"].split()[1:])
        given_to_parts = {k: v for k, v in asked.items() if v is not UNSET}
        asked = {k: v for k, v in given_to_parts.items() if k not in ("part", "out", "minutes")}
        assert bench_command(r["part"], Bench(**asked)) == r["command"]


def test_errors():
    with pytest.raises(ValueError, match="nothing to draw"): plot_benchmarks([])
    small = replace(SMALL, growth=(100, 100))
    with pytest.raises(ValueError, match="two sizes"): measure("growth", small)
    with pytest.raises(ValueError, match="expected one of step"): measure("speed", SMALL)


COMMAND = "from gcutmix.commands import gcutmix_bench; gcutmix_bench()"

def run(*words, cwd):
    "The command in a process of its own."
    return subprocess.run([sys.executable, "-c", COMMAND, *words], cwd=cwd, capture_output=True,
                          text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_command_line(tmp_path):
    done = run("--part", "growth", "--device", "cpu", "--growth", "100,200", "--repeats", "1",
               "--out", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0 and "growth-cpu.json" in done.stdout, done.stderr
    found = json.loads((tmp_path/"growth-cpu.json").read_text())
    assert [row["gallery"] for row in found["growth"]] == [100, 200]


def test_command_line_tells_a_mistake_in_one_line(tmp_path):
    done = run("--part", "speed", cwd=tmp_path)
    assert done.returncode and "expected one of" in done.stderr
    assert "Traceback" not in done.stderr


def test_allocators_are_not_mixed_up(monkeypatch):
    def seconds(bench, environment): return 2. if environment else 3.
    monkeypatch.setattr(levers, "step_in_process", seconds)
    ratio = levers.measure_allocator(SMALL)["ratios"]["keeps freed memory"]
    assert ratio["median"] == pytest.approx(2/3)
