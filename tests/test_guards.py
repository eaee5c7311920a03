"What a run writes down about the health of its branches, and what it says of a dead one."
import json
import math
import time
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

import gcutmix.base.resume as resume
import gcutmix.guards as guards
from conftest import ROOT
from gcutmix.config import make_preset, read_run
from gcutmix.images import keyed_generator
from gcutmix.model import create_model
from gcutmix.pedestrians import write_pedestrians
from gcutmix.study import maps
from gcutmix.training import Trainer, fit
from gcutmix.variants import VARIANTS


@pytest.fixture
def config(people, tmp_path):
    return make_preset("demo", "people", root=people, out=tmp_path/"runs", p=4, epochs=3, warmup=1,
                       decay_at=(), dim=32, eval_every=0, device="cpu")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.floats(.05, .95),
       st.integers(0, 99))
def test_mask_entropy_cell_by_cell(n, h, w, share, seed):
    mask = (torch.rand(n, 1, h, w, generator=keyed_generator(seed)) > share).double()
    counts = [int((mask[:, 0, y, x] == 0).sum()) for y in range(h) for x in range(w)]
    found, lost = guards.mask_entropy(mask).item(), sum(counts)
    if lost in (0, n*h*w): return # nothing is lost, or everything: there is no question
    assert -1e-5 < found < 1 + 1e-5
    entropy = -sum(c/lost*math.log(c/lost) for c in counts if c)
    low, high = math.log(lost/n), math.log(h*w)
    assert found == pytest.approx((entropy - low)/(high - low), abs=1e-4)


def test_the_overlap_is_that_of_the_study():
    a, b = torch.rand(2, 8, 6, 4).relu()
    a[2] = b[5] = 0
    assert guards.map_overlap(a, b) == maps.map_overlap(a, b).nanmean()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(1, 5), st.floats(-30, 30), st.integers(0, 99))
def test_spread_knows_no_unit(n, dim, power, seed):
    e = torch.randn(n, dim, generator=keyed_generator(seed))
    found = guards.spread(e)
    assert 0 <= found <= 1 + 1e-5
    torch.testing.assert_close(guards.spread(e*10.**power), found, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_does_not_apply_is_left_out(name):
    torch.manual_seed(0)
    model, labels = create_model(name, 8, "tiny", dim=16, k=6), torch.arange(16)//2
    steps = model(torch.randn(16, 3, 96, 32), labels, keyed_generator(0))
    found = {key: len(values) for key, values in guards.look(steps, labels).items()}
    expected, mixing = dict(spread=len(steps)), sum(s.partners is not None for s in steps)
    if model.branches: expected |= dict(empty_cam=len(steps))
    if len(model.branches) > 1: expected |= dict(overlap=len(steps) - 1)
    if mixing: expected |= dict(mask_entropy=mixing, same_identity=mixing)
    assert found == expected and mixing == dict(PC1=1, PC2=2).get(name.split("-")[0], 0)


@pytest.mark.parametrize("partner, least, most", [("negative", 0, 0), ("positive", 1, 1),
                                                  ("any", .05, .5)])
def test_a_run_tells_whose_patches_it_took(config, partner, least, most):
    trainer = Trainer(replace(config, partner=partner), quiet=True)
    for batch in trainer.sampler: trainer.train_step(batch)
    shares = guards.means(trainer.guards)["same_identity"]
    assert len(shares) == 2 and least <= min(shares) <= max(shares) <= most


def test_a_checkpoint_keeps_the_rows_and_an_older_one_has_none(config, monkeypatch, tmp_path):
    config = replace(config, epochs=2)
    whole = fit(config, quiet=True)
    cut, old = (replace(config, out=tmp_path/name) for name in ("cut", "old"))
    for c in (cut, old): fit(c, max_steps=2, quiet=True) # half of the first epoch
    assert fit(cut, quiet=True).history[0]["guards"] == whole.history[0]["guards"]
    read = resume.read_checkpoint
    def without(*given):
        state = read(*given)
        assert len(state.pop("guards")) == len(state["rows"]) == 2
        return state
    monkeypatch.setattr(resume, "read_checkpoint", without)
    again = fit(old, quiet=True)
    assert [e["loss"] for e in again.history] == [e["loss"] for e in whole.history]
    assert again.history[0]["guards"] != whole.history[0]["guards"] # of the second half alone
    assert again.history[1]["guards"] == whole.history[1]["guards"]


def test_a_result_without_guards_is_read(tmp_path):
    result = json.loads((ROOT/"results/pedestrians/PC2-tiny-s0.json").read_text(encoding="utf-8"))
    for entry in result["history"]: entry.pop("guards", None)
    file = tmp_path/"old.json"
    file.write_text(json.dumps(result), encoding="utf-8")
    assert read_run(file).history == result["history"]


def test_a_dead_branch_is_told_once_even_if_the_run_is_cut(config):
    def killed(trainer):
        with torch.no_grad(): trainer.network.heads[1].norm.bias.fill_(-1e3)
    trainer = Trainer(config, quiet=True)
    trainer.train_epoch(99, lambda *_: None)
    trainer.end_epoch()
    killed(trainer)
    trainer.train_epoch(99, lambda *_: None)
    with pytest.warns(UserWarning, match="dead since epoch 2: AC1. .*lower lr"): trainer.end_epoch()
    trainer.save()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = fit(config, quiet=True)
    assert guards.dead_branches(run.history[-1]["guards"]) == [1]
    assert run.history[-1]["guards"]["empty_cam"][1] == 1


@pytest.fixture(scope="module")
def pedestrians(tmp_path_factory): return write_pedestrians(tmp_path_factory.mktemp("pedestrians"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["G", "BDB", "BDB3", "PC1", "PC2", "PC2-random"])
def test_the_demo_gets_no_warning(pedestrians, tmp_path, variant):
    config = make_preset("demo", "pedestrians", root=pedestrians, out=tmp_path, variant=variant,
                         epochs=3, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(config, quiet=True)


@pytest.mark.slow
def test_the_guards_are_cheap(config, monkeypatch):
    "Seconds of this process's own, so that other work does not count."
    spent, seconds = [0.], 0.
    def timed(function):
        def clocked(*given):
            since = time.process_time()
            found = function(*given)
            spent[0] += time.process_time() - since
            return found
        return clocked
    for name in ("look", "gradient_norm"):
        monkeypatch.setattr(guards, name, timed(getattr(guards, name)))
    config = replace(config, backbone="mobilenet_v2", size=(192, 64), k=2, p=16)
    trainer = Trainer(config, quiet=True)
    for batch in [*trainer.sampler]*3:
        since = time.process_time()
        trainer.train_step(batch)
        seconds += time.process_time() - since
    assert spent[0] < .02*seconds
