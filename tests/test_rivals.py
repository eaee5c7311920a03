"The methods of Table 2: each is built, trained, killed inside a phase, and has its row."
import pickle
import shlex
import subprocess
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, killed_at
from safetensors.torch import load_file

from gcutmix.config import command_of, make_preset, read_run, run_paths
from gcutmix.images import keyed_generator
from gcutmix.model import create_model
from gcutmix.phases import phase_ends
from gcutmix.study.beside import rows_of_table_2, table_2
from gcutmix.study.paper import PAPER, TABLES, cell_of
from gcutmix.study.runs import cells
from gcutmix.study.tables import read_results
from gcutmix.training import Trainer, fit, forward_loss, recipe
from gcutmix.variants import VARIANTS, training_of, weights_of

NAMED = {"IDE", "TriNet", "TriNet+Era", "SVDNet", "SVDNet+Era", "AOS", "PCB", "PCB-shared",
         "PCB+RPP", "CAMA", "HA-CNN", "PAN", "G+Dropout", "G+DropBlock", "G+CutMix",
         "G+AttentiveCutMix", "PC2-random"}
RIVALS = sorted(NAMED)
OWN = [f"{name}-own" for name in RIVALS if VARIANTS[name].own]


def slow_but(*quick):
    "Every rival in both recipes; only the quick ones in `make test`."
    names = [*RIVALS, *OWN]
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow)
            for name in names]


def preset(cell, **more):
    return make_preset("demo", "people", variant=cell.removesuffix("-own"),
                       own=cell.endswith("-own"), p=4, dim=32, device="cpu", **more)


@pytest.fixture
def config_of(people, tmp_path):
    def config_of(cell, epochs=8):
        return preset(cell, root=people, out=tmp_path/"runs", epochs=epochs, warmup=1,
                      decay_at=(epochs - 2,), eval_every=0)
    return config_of


def words(config):
    places = ["--root", str(config.root), "--out", str(config.out), "--device", config.device]
    return shlex.split(command_of(config)) + places


def test_every_method_of_table_2_has_a_record():
    assert NAMED < set(VARIANTS)
    assert set(PAPER["2"]["cuhk03-detected"]) <= set(rows_of_table_2())
    assert set(TABLES["2"].values()) >= NAMED


@pytest.mark.parametrize("cell", slow_but("PCB+RPP"))
def test_killed_inside_a_phase_it_goes_on_bit_for_bit(config_of, cell, tmp_path, monkeypatch):
    # the preset is given in full, and a method says what it does not read of it
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    config = config_of(cell)
    ends = phase_ends(training_of(config).phases, 32)
    assert len(ends) == 1 or 27 not in ends or cell.startswith("SVDNet")
    whole = fit(config, quiet=True)
    cut = replace(config, out=tmp_path/"cut")
    killed_at(29, words(cut)) # its checkpoint is of iteration 27
    assert run_paths(cut).checkpoint.exists() and not run_paths(cut).result.exists()
    done = subprocess.run(words(cut), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    again = read_run(run_paths(cut).result)
    weights, others = load_file(whole.paths.model), load_file(again.paths.model)
    for key, value in weights.items(): assert torch.equal(value, others[key]), key
    assert again.metrics == whole.metrics
    assert [e["loss"] for e in again.history] == [e["loss"] for e in whole.history]


@pytest.mark.parametrize("cell", slow_but("IDE"))
def test_it_runs_and_its_loss_is_a_number(config_of, cell):
    config = config_of(cell, 8)
    run = fit(config, quiet=True)
    assert run.metrics.mAP > 0 and cell_of(recipe(config)) == cell
    assert set(run.history[0]) >= {"loss", "accuracy", *VARIANTS[config.variant].terms}


@pytest.mark.parametrize("name", RIVALS)
def test_its_feature_depends_on_its_own_image_alone(name):
    torch.manual_seed(0)
    model, images = create_model(name, 5, "tiny", dim=16, k=6).eval(), torch.randn(4, 3, 96, 32)
    with torch.no_grad(): together, alone = model(images), model(images[:1])
    assert together.ndim == 2 and len(together) == 4
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RIVALS)
def test_the_same_key_draws_the_same(name):
    "Nothing in a training step draws from torch's own generator."
    config, losses = preset(name), []
    torch.manual_seed(0)
    model = create_model(name, 4, "tiny", dim=32, k=6).train()
    images = torch.randint(0, 256, (16, 3, 96, 32), dtype=torch.uint8)
    for _ in range(2):
        twin = deepcopy(model) # running statistics change with each step
        losses.append(forward_loss(twin, images, torch.arange(16)//4, keyed_generator(3), config))
        torch.rand(1)
    assert torch.equal(losses[0][0], losses[1][0])


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in RIVALS])
def test_it_stands_on_other_backbones(name, backbone):
    config, labels = preset(name), torch.arange(8)//4
    model = create_model(name, 2, backbone, dim=32, k=1).train()
    images = torch.randint(0, 256, (8, 3, 192, 64), dtype=torch.uint8)
    loss, _ = forward_loss(model, images, labels, keyed_generator(0), replace(config, k=1))
    loss.backward()
    assert loss.isfinite()


def test_a_recipe_of_its_own_is_asked_for_in_vain(config_of):
    with pytest.raises(ValueError, match="PC2 has no recipe of its own"):
        fit(replace(config_of("PC2"), own=True), quiet=True)


def test_one_file_less_is_one_cell_less(tmp_path):
    results = read_results(ROOT/"results"/"pedestrians")
    def cell(found): return {row[""]: row["drawn"] for row in table_2({"drawn": found})}
    without = [r for r in results if cell_of(r["recipe"]) != "PCB"]
    full, less = cell(results), cell(without)
    assert full["PCB"] and not less["PCB"]
    assert {k: v for k, v in full.items() if k != "PCB"} == {k: v for k, v in less.items()
                                                            if k != "PCB"}


def test_every_cell_can_start_from_weights():
    "HA-CNN has layers of its own: the table's weights are not for it."
    small = cells(make_preset("small", "cuhk03-p1-detected"))
    assert NAMED <= set(small)
    without = {name for name, config in small.items() if weights_of(config) is None}
    assert without == {"HA-CNN", "HA-CNN-own"}


@pytest.mark.parametrize("name", RIVALS)
def test_its_network_can_be_pickled(name):
    model = create_model(name, 4, "tiny")
    assert pickle.loads(pickle.dumps(model)).record.name == name


@pytest.mark.parametrize("cell", ["PCB+RPP", "AOS", "PAN", "SVDNet", "PCB+RPP-own"])
def test_a_run_without_room_for_every_phase_is_refused(config_of, cell):
    with pytest.raises(ValueError, match="too few for .* phases"):
        Trainer(replace(config_of(cell, 1), p=16), quiet=True)


@pytest.mark.parametrize("cell, changes, complaint", [
    ("AOS", dict(size=(320, 24)), "does not fit into images"),
    ("G+AttentiveCutMix", dict(k=32), "the whole 24x8 map")])
def test_what_cannot_run_is_told_before_the_training(config_of, cell, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Trainer(replace(config_of(cell), **changes), quiet=True)


def test_what_precedes_a_phase_is_saved(config_of, monkeypatch):
    "A run that stops in the first step after the windows were measured does not measure again."
    config = config_of("AOS")
    trainer, measured = Trainer(config, quiet=True), []
    def stop(self, batch): raise KeyboardInterrupt
    trainer.run(16, float("inf"))
    monkeypatch.setattr(Trainer, "train_step", stop)
    with pytest.raises(KeyboardInterrupt): trainer.run(17, float("inf"))
    again = Trainer(config, quiet=True)
    again.network.occlude = lambda *_: measured.append(1)
    again.load()
    assert again.phase == 1 and torch.equal(again.kept, trainer.kept) and not measured
