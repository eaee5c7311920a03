"The benchmarks compare equal things, and their files can be read."
import json
import subprocess
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from gcutmix import benchmarks, benchmarks_retrieval, benchmarks_step
from gcutmix.benchmarks import Bench, bench_command, measure, plot_benchmarks, read_benchmarks
from gcutmix.benchmarks_retrieval import crowd, gcutmix_bench, rank_by_argsort, rank_by_counting, torchreid_rankings
from gcutmix.benchmarks_step import Job, RandomMasks, Stopwatch, Textbook, measure_levers, peak_memory, step_flop, stretches, watch
from gcutmix.blocks import block_mask
from gcutmix.evaluation import distance_to

SMALL = Bench(device="cpu", batch=8, backbone="tiny", size=(96, 32), repeats=1, images=6, queries=20, gallery=300, dim=16, growth=(100, 200))


@pytest.mark.parametrize("options", [dict(), dict(block=(6, 4), k=3), dict(partner="any", channels_last=False)])
def test_textbook_step_is_our_step(options):
    "The same blocks, logits, loss, gradients, and weights after three steps of Adam."
    ours, naive = Job(SMALL, cam_grad="batch", **options), Job(SMALL, Textbook, **options)
    for a, b in zip(ours.model(*ours.inputs()), naive.model(*naive.inputs())):
        torch.testing.assert_close(a.logits, b.logits)
        if a.mask is not None:
            assert b.mask.shape == b.features.shape and torch.equal(a.mask.expand_as(b.mask), b.mask)
    for _ in range(3): ours(); naive()
    torch.testing.assert_close(torch.stack(ours.losses), torch.stack(naive.losses), rtol=1e-4, atol=1e-4)
    for p, q in zip(ours.model.parameters(), naive.model.parameters()): torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_textbook_leaves_no_gradient_and_moves_statistics_once():
    naive = Job(SMALL, Textbook)
    naive.loss()
    assert all(p.grad is None for p in naive.model.parameters())
    assert {int(m.num_batches_tracked) for m in naive.model.modules() if hasattr(m, "num_batches_tracked")} == {1}


def test_textbook_mask_is_block_mask():
    "Also where scores are equal: the lower index first."
    model = Job(SMALL, Textbook).model
    cams = torch.cat([torch.rand(5, 24, 8), torch.zeros(1, 24, 8), torch.ones(1, 24, 8)])
    masks = torch.stack([model.mask_of(cam, torch.empty(1, 3, 24, 8)) for cam in cams])
    assert torch.equal(masks, block_mask(cams, model.options.k).expand(-1, 3, -1, -1))


def test_jobs_with_the_same_settings_do_the_same():
    one, two, dice = Job(SMALL), Job(SMALL), Job(SMALL, RandomMasks)
    for job in (one, two, one, two): job()
    assert one.losses == two.losses and len(set(map(float, one.losses))) == 2
    assert not torch.equal(dice.model(*dice.inputs())[1].mask, one.model(*one.inputs())[1].mask)


def test_operations_of_a_step():
    "Twice the pixels, nearly twice the work."
    assert step_flop(replace(SMALL, size=(192, 32))) == pytest.approx(2*step_flop(SMALL), rel=.05)


def test_a_quarter_of_the_blocks_is_cut_out_of_every_map():
    for bench, k in (SMALL, 8), (replace(SMALL, backbone="mobilenet_v2", size=(192, 64)), 2):
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
    np.testing.assert_allclose(rank_by_counting(distances.copy(), qp, qc, gp, gc), theirs, rtol=1e-12)
    assert .05 < np.nanmean(theirs) < .95


def fake_torchreid(folder, text):
    (folder/"torchreid/metrics").mkdir(parents=True)
    (folder/"torchreid/__init__.py").write_text("raise ImportError('must not be imported')")
    (folder/"torchreid/metrics/rank.py").write_text(text)
    (folder/"torchreid-9.9.dist-info").mkdir()
    (folder/"torchreid-9.9.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torchreid\nVersion: 9.9\n")


def test_torchreid_is_optional(monkeypatch):
    monkeypatch.setattr(benchmarks_retrieval.importlib.util, "find_spec", lambda name: None)
    ways, remark = torchreid_rankings()
    assert ways == {} and "not installed" in remark


@pytest.mark.parametrize("text, names, remark", [
    ("import nothing_of_this_name", [], "does not load: ModuleNotFoundError"),
    ("IS_CYTHON_AVAI = False\ndef evaluate_rank(*a, use_cython): return a, .5", ["torchreid, Python"], "9.9; its compiled"),
    ("IS_CYTHON_AVAI = True\ndef evaluate_rank(*a, use_cython): return a, .5", ["torchreid, Python", "torchreid, compiled"], "version 9.9")])
def test_torchreid_takes_part_where_it_loads(tmp_path, monkeypatch, text, names, remark):
    fake_torchreid(tmp_path, text)
    monkeypatch.syspath_prepend(str(tmp_path))
    ways, found = torchreid_rankings()
    assert list(ways) == names and remark in found
    assert all(way(*range(5)) == .5 for way in ways.values())


def test_a_lever_that_breaks_is_left_out_with_its_reason(monkeypatch):
    def breaks(model): raise OSError("no compiler in /usr/somewhere\nmore")
    monkeypatch.setitem(benchmarks_step.LEVERS, "compile", dict(compiled=breaks))
    found = measure_levers(replace(SMALL, levers=("fused", "compile", "graphs")))
    assert found["skipped"] == {"compile": "OSError: no compiler in ...", "graphs": "needs CUDA"}
    assert list(found["comparisons"][0]["seconds"]) == ["default", "fused"]


def test_stretches_cover_a_step():
    job, clock = Job(SMALL), Stopwatch("cpu")
    watch(job.model, clock)
    names = list(stretches(job, clock))
    assert names == list(stretches(job, clock)) and names[0] == "gather and augment" and names[-1] == "Adam"
    assert names.index("heads, losses, mix, backward") < names.index("bottleneck, backward") < names.index("backbone, backward")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    sizes = dict(device="cpu", batch=4, backbone="tiny", size=(96, 32), repeats=1, images=6, queries=20, gallery=300, dim=16, growth=(100, 200))
    for part in ("step", "evaluation", "growth", "data", "profile"): gcutmix_bench(part, out, **sizes)
    gcutmix_bench("levers", out, levers=("fused", "allocator"), **sizes)
    return out


def test_every_part_writes_a_file(results):
    assert sorted(path.name for path in results.iterdir()) == sorted(f"{part}-tiny-cpu.json" for part in benchmarks.PARTS)
    for r in read_benchmarks(results):
        assert {"command", "code", "hardware", "packages", "environment", "settings", "floors", "started", "seconds", "facts", "comparisons"} <= set(r)
        assert r["command"].startswith(f"gcutmix_bench --part {r['part']} --device cpu --batch 4 --backbone tiny --size 96x32")
        assert str(results.parent) not in json.dumps(r) and r["floors"]["matrix"] > 0


def test_results_are_drawn(results):
    figure = plot_benchmarks(read_benchmarks(results))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names.count("textbook") == 2 and "plain PIL loop" in names and "keeps freed memory" in names
    plt.close(figure)
    assert read_benchmarks(results/"nowhere") == []


def test_command_says_no_folder():
    assert bench_command("data", Bench(device="cpu", dataset="market1501", root="/secret")) == \
        "gcutmix_bench --part data --device cpu --dataset market1501 --root FOLDER"


def test_errors():
    with pytest.raises(ValueError, match="nothing to draw"): plot_benchmarks([])
    with pytest.raises(ValueError, match="two sizes"): measure("growth", replace(SMALL, growth=(100, 100)))


def test_command_line(tmp_path):
    run = lambda *words: subprocess.run(["gcutmix_bench", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    done = run("--part", "growth", "--device", "cpu", "--growth", "100,200", "--repeats", "1", "--out", str(tmp_path))
    assert done.returncode == 0 and "growth-cpu.json" in done.stdout, done.stderr
    assert [row["gallery"] for row in json.loads((tmp_path/"growth-cpu.json").read_text())["growth"]] == [100, 200]
    done = run("--part", "speed")
    assert done.returncode and "expected one of" in done.stderr


def test_allocators_are_not_mixed_up(monkeypatch):
    monkeypatch.setattr(benchmarks_step, "step_in_process", lambda bench, environment: 2. if environment else 3.)
    assert benchmarks_step.measure_allocator(SMALL)["ratios"]["keeps freed memory"]["median"] == pytest.approx(2/3)
