"A network's file, what starts from it, what goes on after it, and what is written on the way."
import csv
import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

from conftest import ROOT, posix
from gcutmix.base.devices import make_accelerator
from gcutmix.base.model_files import ABOUT
from gcutmix.base.states import split_state
from gcutmix.base.weights import write_network
from gcutmix.card import MISSING, model_card
from gcutmix.config import make_preset, run_paths
from gcutmix.evaluation import extract_features
from gcutmix.gallery import embed
from gcutmix.model import create_model, load_model, save_model
from gcutmix.training import fit

COMMITTED = sorted((ROOT/"results").rglob("*.safetensors"))


@pytest.fixture(scope="module")
def config(people, tmp_path_factory):
    "Two branches, two epochs of two iterations."
    return make_preset("demo", "people", root=people, out=tmp_path_factory.mktemp("runs"), p=8,
                       variant="PC1", epochs=2, warmup=1, device="cpu", eval_every=1,
                       keep_state=True)


@pytest.fixture(scope="module")
def run(config):
    before = os.umask(0o022)
    try: return fit(config, quiet=True)
    finally: os.umask(before)


# What the file says

def test_the_file_says_how_to_use_it(run, config):
    about = load_model(run.paths.model).recipe
    assert set(ABOUT) <= set(about) and about["num_classes"] == 16 and about["pictures"] == 64
    assert about["size"] == [96, 32] and about["epochs"] == 2 and about["weights"] is None
    assert about["metrics"]["mAP"] == pytest.approx(run.metrics.mAP, abs=1e-6)
    assert "drawn people" in about["licence"]
    assert about["code"] == json.loads(run.paths.result.read_text())["code"]


def test_its_normalisation_is_that_of_the_training(run):
    about = load_model(run.paths.model).recipe
    theirs = torchvision.models.ResNet50_Weights.DEFAULT.transforms()
    assert (about["mean"], about["std"]) == (theirs.mean, theirs.std)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_an_older_file_can_do_the_same(path, recwarn):
    network, recipe = load_model(path)
    assert network.recipe is recipe and load_model(path)[1]["variant"] == recipe["variant"]
    images = torch.randint(256, (3, 3, *recipe["size"]), dtype=torch.uint8)
    right = extract_features(network, images, 2)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    for same in (images, pictures, [np.asarray(p) for p in pictures]):
        assert torch.equal(network.embed(same, batch_size=2), right)
    assert MISSING in model_card(path) and not len(recwarn)


def test_another_normalisation_in_the_file_counts(tmp_path):
    model = create_model("G", 8, "tiny", dim=8)
    images = torch.randint(256, (2, 3, 48, 16), dtype=torch.uint8)
    save_model(model, tmp_path/"n.safetensors", size=(48, 16), mean=[.5]*3, std=[.25]*3)
    right = model.eval()(images.float()/255*4 - 2)
    network = load_model(tmp_path/"n.safetensors")
    ways = network.embed, lambda x: extract_features(network, x), lambda x: embed(network, x)[0]
    for found in (way(images) for way in ways):
        torch.testing.assert_close(found, right.detach())


def test_a_card_has_the_runs_numbers_and_limits(run):
    card = model_card(run.paths.model)
    assert f"rank-1 {run.metrics.rank1:.1%}, mAP {run.metrics.mAP:.1%}" in card
    assert "people, 16 people |" in card and "| 64; 2 |" in card
    assert "publishes no network" in card
    assert MISSING not in card


@posix
def test_all_files_are_as_readable_as_the_umask_says(run):
    files = [path for path in run.paths.result.parent.iterdir() if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".safetensors", ".csv", ".pt"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


def test_an_older_name_of_a_layer_is_read(tmp_path):
    model = create_model("TriNet", 8, "tiny").eval()
    state = {name.replace("embedding.", "embed."): v for name, v in model.state_dict().items()}
    assert state.keys() != model.state_dict().keys()
    write_network(tmp_path/"old.safetensors", state, variant="TriNet", num_classes=8,
                  backbone="tiny", size=(96, 32))
    images = torch.randint(256, (2, 3, 96, 32), dtype=torch.uint8)
    found = load_model(tmp_path/"old.safetensors").embed(images)
    assert torch.equal(found, extract_features(model, images))


# Start from somebody's network

def test_a_run_starts_from_a_network_of_other_people(run, config, tmp_path, capsys):
    start = replace(config, weights=str(run.paths.model), variant="PC2", epochs=1, lr=0., p=4,
                    weight_decay=0., out=tmp_path, dim=32, dataset="people")
    found, state = load_file(fit(start, quiet=True).paths.model), load_file(run.paths.model)
    kept = [name for name in found if name.startswith(("backbone.", "bottleneck."))
            and name.endswith("weight")]
    assert kept and all(torch.equal(found[name], state[name]) for name in kept)
    assert "took backbone and bottleneck, left out heads (16 tensors)" in capsys.readouterr().err
    result = json.loads(run_paths(start).result.read_text())
    assert result["recipe"]["weights"] == run.paths.model.name and result["weights_sha256"]


def test_validation_people_must_be_unknown(run, config):
    with pytest.raises(ValueError, match="knows the people that people-validation tests on"):
        replace(config, weights=str(run.paths.model), dataset="people-validation")


def test_a_changed_network_or_one_on_another_backbone_is_refused(run, tmp_path):
    content = bytearray(run.paths.model.read_bytes())
    content[-1] ^= 1
    (tmp_path/"bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="bad.safetensors is damaged"):
        create_model("G", 4, "tiny", tmp_path/"bad.safetensors")
    with pytest.raises(ValueError, match="is a network on tiny, not on resnet18"):
        create_model("G", 4, "resnet18", run.paths.model)


class Harm:
    def __reduce__(self): return os.system, ("touch harmed",)


def test_a_checkpoint_of_a_different_project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = create_model("G", 4, "tiny").backbone.state_dict()
    state = {f"module.base.{name}": value for name, value in own.items()}
    state["module.classifier.weight"] = torch.ones(9, 128)
    torch.save(dict(epoch=3, state_dict=state), "theirs.pth.tar")
    found = create_model("G", 4, "tiny", "theirs.pth.tar").backbone.state_dict()
    assert all(torch.equal(found[name], own[name]) for name in own)
    assert "left out classifier (1 tensor)" in capsys.readouterr().err
    torch.save(dict(state_dict=state, rest=Harm()), "harm.pth.tar")
    with pytest.raises(ValueError, match="harm.pth.tar cannot be read"):
        create_model("G", 4, "tiny", "harm.pth.tar")
    assert not (tmp_path/"harmed").exists()


def test_nothing_of_the_backbone_may_be_left_over():
    own = create_model("G", 4, "tiny").backbone.state_dict()
    first = next(iter(own))
    mine, rest = split_state({f"net.{name}": v for name, v in own.items()}
                             | {"net.0.9.weight": own[first], "net.x.weight": own[first]}, own)
    assert set(mine) - set(own) == {"0.9.weight"} and rest == ["net.x.weight"]


# Go on

@pytest.mark.slow
def test_more_epochs_stopped_in_between_are_those_of_a_longer_run(run, config, tmp_path):
    whole = fit(replace(config, epochs=3, out=tmp_path), quiet=True)
    longer = replace(config, epochs=3)
    assert fit(longer, max_steps=1, quiet=True).metrics is None
    more = fit(longer, quiet=True)
    a, b = load_file(more.paths.model), load_file(whole.paths.model)
    assert all(torch.equal(a[name], b[name]) for name in b) and more.metrics == whole.metrics
    shorter = replace(config, name="PC1-tiny-s0-2-epochs")
    assert fit(shorter, quiet=True).metrics == run.metrics # read


def test_a_method_in_phases_cannot_go_on(config, tmp_path):
    from gcutmix.base.onward import reopened
    from gcutmix.base.resume import recipe
    from gcutmix.variants import training_of
    asked = replace(config, variant="PCB+RPP", out=tmp_path, epochs=3)
    paths = run_paths(asked)
    paths.result.write_text(json.dumps(dict(recipe=recipe(replace(asked, epochs=2)))))
    with pytest.raises(ValueError, match="divides the whole run into parts"):
        reopened(paths, recipe(asked), {}, training_of(asked).phases)
    assert paths.result.exists()


def test_the_best_epoch_survives_a_stop(config, tmp_path):
    best = replace(config, dataset="people-validation", variant="G", keep="best", p=4, epochs=3,
                   lr=.03, keep_state=False)
    whole = fit(replace(best, out=tmp_path/"whole"), quiet=True)
    cut = replace(best, out=tmp_path/"cut")
    for steps in (4, None): found = fit(cut, steps, quiet=True)
    a, b = load_file(found.paths.model), load_file(whole.paths.model)
    assert all(torch.equal(a[name], b[name]) for name in b)
    scores = [entry["mAP"] for entry in whole.history]
    assert whole.metrics.mAP == found.metrics.mAP == max(scores)
    kept = json.loads(whole.paths.result.read_text())["kept_epoch"]
    assert scores[kept - 1] == max(scores) and kept < 3 # else this test shows nothing
    assert load_model(whole.paths.model).recipe["metrics"]["mAP"] == round(max(scores), 6)


def test_a_gpu_by_its_number(monkeypatch):
    chosen = []
    monkeypatch.setattr("gcutmix.base.devices.choose_device", torch.device)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    make_accelerator("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="names one GPU, and 2 processes"):
        make_accelerator("cuda:1")


# Watch

def test_a_hook_sees_each_epoch_and_changes_nothing(run, config, tmp_path):
    seen = []
    def on_epoch(trainer, entry):
        torch.rand(3) # a caller's own chance
        seen.append((trainer.epoch, entry.pop("loss")))
    again = fit(replace(config, out=tmp_path), quiet=True, on_epoch=on_epoch)
    losses = [entry["loss"] for entry in again.history]
    assert seen == list(enumerate(losses, 1)) and again.metrics == run.metrics
    text = again.paths.log.read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert [float(row["loss"]) for row in rows] == losses


def test_tensorboard_has_the_same_numbers(config, tmp_path):
    pytest.importorskip("tensorboard", reason="needs pip install 'gcutmix[log]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = replace(config, out=tmp_path, log="tensorboard", variant="G")
    done = fit(board, quiet=True)
    events = EventAccumulator(str(tmp_path/"G-tiny-s0.tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(e["epoch"], pytest.approx(e["loss"], rel=1e-5)) for e in done.history]


# Export

@pytest.mark.slow
def test_onnx_gives_the_same_features_in_any_batch(run, tmp_path, capsys):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="needs pip install 'gcutmix[onnx]'")
    import onnx
    import onnxruntime
    from gcutmix.export import gcutmix_export
    gcutmix_export(run.paths.model, tmp_path/"net.onnx")
    assert "largest difference" in capsys.readouterr().out
    cpu = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(tmp_path/"net.onnx", providers=cpu)
    network = load_model(run.paths.model)
    for n in (2, 7):
        pictures = torch.randint(256, (n, 3, 96, 32), dtype=torch.uint8)
        found = session.run(None, dict(pictures=pictures.numpy()))[0]
        torch.testing.assert_close(torch.tensor(found), network.embed(pictures), atol=1e-4,
                                   rtol=1e-4)
    about = {entry.key: entry.value for entry in onnx.load(tmp_path/"net.onnx").metadata_props}
    assert json.loads(about["recipe"])["licence"] == network.recipe["licence"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["G", "BDB3", "PC2", "IDE", "TriNet", "PCB", "SVDNet", "CAMA"])
def test_methods_that_can_be_exported(variant, tmp_path):
    from gcutmix.export import export
    save_model(create_model(variant, 8, "tiny", dim=8), tmp_path/"n.safetensors", size=(96, 32))
    assert export(load_model(tmp_path/"n.safetensors"), tmp_path/"n.pt2") < 1e-4


def test_a_method_that_cannot_says_so(tmp_path, capfd):
    from gcutmix.export import export
    save_model(create_model("PCB+RPP", 8, "tiny"), tmp_path/"n.safetensors", size=(96, 32))
    with pytest.raises(ValueError, match=r"PCB\+RPP cannot be exported for batches of any size"):
        export(load_model(tmp_path/"n.safetensors"), tmp_path/"n.pt2")
    assert not (tmp_path/"n.pt2").exists() and not any(capfd.readouterr())
