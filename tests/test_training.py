"Runs that are killed, broken, spread over processes, or put on a GPU."
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import gcutmix.training as training
import gcutmix.ingredients as ingredients
import gcutmix.variants as variants
from conftest import killed_at, posix
from gcutmix.base.checkpoints import Damaged, read_state
from gcutmix.base.devices import make_accelerator
from gcutmix.base.files import write_atomically
from gcutmix.base.locks import Busy, Stopped, locked
from gcutmix.config import command_of, make_preset, read_run, run_paths
from gcutmix.model import create_backbone
from gcutmix.training import Trainer, fit



@pytest.fixture
def drawn(monkeypatch):
    "What each step of this process takes: its batch (a sum per image) and its generator's seed."
    found, augment = [], ingredients.augment
    def spy(images, generator, *more):
        found.append((images.long().sum((1, 2, 3)).tolist(), generator.initial_seed()))
        return augment(images, generator, *more)
    monkeypatch.setattr(ingredients, "augment", spy)
    return found


@pytest.fixture
def config(people, tmp_path):
    return make_preset("demo", "people", root=people, out=tmp_path/"runs", p=4, epochs=4, warmup=1,
                       decay_at=(3,), dim=32, eval_every=0, device="cpu")


@pytest.fixture
def short(config):
    "Eight iterations of one branch."
    return replace(config, variant="G", epochs=2, decay_at=())


def words(config):
    "The command line of a run."
    places = ["--root", str(config.root), "--out", str(config.out), "--device", config.device]
    return shlex.split(command_of(config)) + places


def started(line):
    "Run a command line that must succeed."
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def without_seconds(run):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.history]


def result_of(run): return json.loads(run.paths.result.read_text())


def same(a, b):
    "Weights and history of two finished runs, but for the seconds."
    weights, others = load_file(a.paths.model), load_file(b.paths.model)
    for key, value in weights.items(): assert torch.equal(value, others[key]), key
    assert without_seconds(a) == without_seconds(b) and a.metrics == b.metrics


def test_killed_and_started_again_gives_the_same_numbers(config, tmp_path):
    whole = fit(config, quiet=True)
    cut = replace(config, out=tmp_path/"cut")
    killed_at(7, words(cut)) # its checkpoint is one of the middle of the second epoch
    assert run_paths(cut).checkpoint.exists() and not run_paths(cut).result.exists()
    started(words(cut))
    same(whole, read_run(run_paths(cut).result))


SENDS = """
import os, runpy, shutil, signal, sys
from gcutmix.training import Trainer

number, step = signal.Signals[sys.argv[1]], Trainer.train_step

def train_step(self, batch):
    if self.done == 6: os.kill(os.getpid(), number) # in the middle of the seventh step
    step(self, batch)

Trainer.train_step = train_step
sys.argv = sys.argv[2:]
signal.signal(signal.SIGINT, signal.default_int_handler) # a test in the background ignores it
runpy.run_path(shutil.which(sys.argv[0]), run_name="__main__")
"""


@posix
@pytest.mark.parametrize("name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow)
                                               for name in ("SIGINT", "SIGHUP"))])
def test_a_signal_ends_a_command_with_a_checkpoint_and_one_line(short, name, tmp_path):
    line = [sys.executable, "-c", SENDS, name, *words(short)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 128 + signal.Signals[name]
    assert "stopped after iteration 7 of 8; the same call goes on from" in done.stderr
    assert "Traceback" not in done.stderr
    state = read_state(run_paths(short).checkpoint)
    assert (state["epoch"], len(state["rows"])) == (1, 3)
    same(fit(short, quiet=True), fit(replace(short, out=tmp_path/"whole"), quiet=True))
    assert sorted(path.suffix for path in short.out.iterdir()) == [".csv", ".json", ".safetensors"]


def sent(monkeypatch, at, *numbers):
    "From now on, the step after iteration `at` is hit by these signals, once."
    step, left = Trainer.train_step, list(numbers)
    def train_step(self, batch):
        while self.done == at and left: signal.raise_signal(left.pop())
        step(self, batch)
    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_a_signal_during_the_test_keeps_the_epoch(short, tmp_path, monkeypatch):
    handlers, test = signal.getsignal(signal.SIGTERM), Trainer.test
    whole = fit(short, quiet=True)
    cut, hits = replace(short, out=tmp_path/"cut", eval_every=1), [signal.SIGTERM]
    def hit(self):
        if hits: signal.raise_signal(hits.pop())
        return test(self)
    monkeypatch.setattr(Trainer, "test", hit)
    with pytest.raises(Stopped, match="after iteration 4 of 8") as stopped: fit(cut, quiet=True)
    assert stopped.value.status == 143 and signal.getsignal(signal.SIGTERM) == handlers
    monkeypatch.setattr(Trainer, "test", test)
    again = fit(replace(cut, eval_every=1), quiet=True)
    assert [entry["loss"] for entry in again.history] == [entry["loss"] for entry in whole.history]


@posix
def test_an_ignored_signal_stays_ignored(short, monkeypatch):
    "That is what nohup is for."
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sent(monkeypatch, 3, signal.SIGHUP)
    try: fit(short, max_steps=4, quiet=True)
    finally: signal.signal(signal.SIGHUP, usual)


def test_a_second_ctrl_c_ends_at_once(short, monkeypatch):
    fit(short, max_steps=2, quiet=True)
    good = run_paths(short).checkpoint.read_bytes()
    monkeypatch.setattr("gcutmix.base.locks.AT_ONCE", -1)
    sent(monkeypatch, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as ended: fit(short, quiet=True)
    assert type(ended.value) is KeyboardInterrupt
    assert run_paths(short).checkpoint.read_bytes() == good
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [path.name for path in short.out.iterdir()] == [run_paths(short).checkpoint.name]


def test_a_run_belongs_to_one_process_at_a_time(short):
    with locked(run_paths(short)):
        with pytest.raises(Busy, match=f"is being trained by process {os.getpid()} on .* since"):
            fit(short, quiet=True)
    assert fit(short, max_steps=0, quiet=True).metrics is None


def test_what_dead_processes_left_is_removed(short):
    short.out.mkdir()
    paths = run_paths(short)
    for path in paths.values(): path.with_name(f"{path.name}.77-abcd.part").write_text("half")
    paths.result.with_suffix(".lock").touch()
    paths.result.with_suffix(".lock.txt").write_text("process 77 on this machine since then")
    other = paths.result.with_name(f"{paths.result.name}.x.77-abcd.part") # of a different run
    other.touch()
    fit(short, quiet=True)
    assert set(short.out.iterdir()) == {paths.result, paths.model, paths.log, other}


def test_a_thread_trains_too(short):
    "No handler can be set there."
    found = []
    thread = threading.Thread(target=lambda: found.append(fit(short, 1, quiet=True)))
    thread.start()
    thread.join()
    assert found[0].paths.checkpoint.exists()


@pytest.mark.slow
def test_two_commands_of_one_name_do_not_mix(short, tmp_path):
    whole = fit(replace(short, out=tmp_path/"whole"), quiet=True)
    for n in range(4):
        twin = replace(short, out=tmp_path/str(n))
        jobs = [subprocess.Popen(words(twin), stderr=subprocess.PIPE, text=True) for _ in range(2)]
        said = [job.communicate()[1] for job in jobs]
        failed = [text for job, text in zip(jobs, said) if job.returncode]
        assert len(failed) < 2 and all("is being trained by process" in text for text in failed)
        same(whole, read_run(run_paths(twin).result))
        assert len(list(twin.out.iterdir())) == 2


def test_a_turned_bit_or_a_cut_is_refused(short):
    "A hundred and fifty of each, in the checkpoint of a run."
    fit(short, max_steps=2, quiet=True)
    file, rng = run_paths(short).checkpoint, random.Random(0)
    good = file.read_bytes()
    for _ in range(150):
        place, bad = rng.randrange(8*len(good)), bytearray(good)
        bad[place//8] ^= 1 << place % 8
        file.write_bytes(bad)
        with pytest.raises(Damaged): read_state(file)
        file.write_bytes(good[:place//8])
        with pytest.raises(Damaged): read_state(file)
    with pytest.raises(ValueError, match="is damaged.*Choose another `name`"):
        fit(short, quiet=True)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(short, tmp_path, capsys):
    whole = fit(replace(short, out=tmp_path/"whole"), quiet=True)
    for _ in range(2): fit(short, max_steps=3, quiet=True)
    with open(run_paths(short).checkpoint, "r+b") as file:
        file.seek(5000)
        file.write(b"?")
    fit(short, max_steps=0, quiet=True) # the damaged one does not take the place of the good one
    assert read_state(run_paths(short).checkpoint)["epoch"] == 0
    assert read_state(run_paths(short).previous)["epoch"] == 0
    assert "going on from G-tiny-s0.checkpoint.pt.previous" in capsys.readouterr().out
    same(whole, fit(short, quiet=True))
    assert not list(short.out.glob("*.checkpoint.pt*"))


@pytest.mark.slow
def test_a_checkpoint_of_format_4_is_read(short, tmp_path):
    whole = fit(replace(short, out=tmp_path/"whole"), quiet=True)
    fit(short, max_steps=5, quiet=True)
    file = run_paths(short).checkpoint
    torch.save(read_state(file) | {"format": 4}, file) # as before there were seals
    same(whole, fit(short, quiet=True))


def test_the_recorded_command_makes_the_same_run(config, tmp_path):
    first = fit(config, quiet=True)
    line = shlex.split(result_of(first)["command"])
    started([*line, "--root", str(config.root), "--out", str(tmp_path/"again"), "--device", "cpu"])
    same(first, read_run(tmp_path/"again"/first.paths.result.name))


def test_a_result_knows_its_pretrained_weights_by_their_bytes(config, tmp_path):
    file = tmp_path/"mine.safetensors"
    save_file(create_backbone("tiny").state_dict(), file)
    result = result_of(fit(replace(config, weights=str(file)), quiet=True))
    assert result["recipe"]["weights"] == "mine.safetensors"
    assert result["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def test_a_finished_run_is_read_and_not_repeated(config):
    first = fit(config, quiet=True)
    stamp = first.paths.model.stat().st_mtime_ns
    assert fit(config, quiet=True).metrics == first.metrics
    assert first.paths.model.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("settings, complaint", [
    (dict(dim=0), "dim 0: expected 1"), (dict(seed=-1), "seed -1"), (dict(k=-1), "k -1"),
    (dict(instances=1), "instances 1: expected 2"), (dict(warmup=-1), "warmup -1"),
    (dict(block=(3,)), "two whole numbers"), (dict(size="96x32"), "expected whole numbers"),
    (dict(size=(0, 32)), "two whole numbers"), (dict(lr=-1.), "lr -1.0: expected 0"),
    (dict(random_erasing=2.), "a share from 0 to 1")])
def test_settings_are_looked_at_first(settings, complaint):
    with pytest.raises(ValueError, match=complaint): make_preset("demo", "people", **settings)


@pytest.mark.parametrize("changes, complaint", [
    (dict(size=(100, 32)), "25 must be a multiple of 3"), (dict(k=32), "the whole 24x8 map"),
    (dict(p=99), "the data have 16"), (dict(variant="PC3"), "expected one of G"),
    (dict(out="a file"), "choose another `out`")])
def test_what_cannot_run_is_told_first(config, changes, complaint, monkeypatch, tmp_path):
    "Before anything is decoded."
    if "out" in changes:
        changes = dict(out=tmp_path/"a file")
        changes["out"].touch()
    monkeypatch.setattr(training, "load_splits", lambda *args, **kwargs: pytest.fail("decoded"))
    with pytest.raises((ValueError, OSError), match=complaint):
        fit(replace(config, **changes), quiet=True)


def test_a_full_disk_keeps_the_checkpoint(config, monkeypatch):
    fit(config, max_steps=2, quiet=True)
    good = run_paths(config).checkpoint.read_bytes()
    def full(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="make room"): fit(config, max_steps=2, quiet=True)
    assert run_paths(config).checkpoint.read_bytes() == good and not list(config.out.glob("*.part"))


@pytest.mark.parametrize("write", [lambda part: torch.save(torch.zeros(9999), part),
                                   lambda part: save_file({"a": torch.zeros(9999)}, part),
                                   lambda part: part.write_text("a"*9999)])
def test_whatever_is_written_a_full_disk_is_told_with_advice(write, tmp_path):
    resource = pytest.importorskip("resource")
    file, limits = tmp_path/"file", resource.getrlimit(resource.RLIMIT_FSIZE)
    file.write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="make room"): write_atomically(file, write)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and file.read_text() == "old"
    with pytest.raises(OSError, match="another `out`"): write_atomically(file/"in a file", write)


@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
def test_the_last_update_is_looked_at_too(config, broken):
    fit(config, max_steps=2, quiet=True)
    good = run_paths(config).checkpoint.read_bytes()
    trainer = Trainer(config, quiet=True)
    trainer.load()
    trainer.train_epoch(1, lambda *_: None)
    with torch.no_grad(): trainer.model.heads[0].reduce.weight[0] = broken
    complaint = "weight is not finite.*another `name`"
    with pytest.raises(FloatingPointError, match=complaint): trainer.save()
    assert run_paths(config).checkpoint.read_bytes() == good


def test_a_result_names_every_version_that_made_it(config, monkeypatch):
    monkeypatch.setattr(training, "code_version", lambda: "1+old-changed")
    fit(config, max_steps=5, quiet=True)
    monkeypatch.setattr(training, "code_version", lambda: "1+new")
    fit(config, max_steps=5, quiet=True)
    assert result_of(fit(config, quiet=True))["code"] == "1+old-changed then 1+new"


def test_each_seed_epoch_and_step_draws_anew(config, drawn):
    for seed in (0, 1): # two epochs
        fit(replace(config, seed=seed, name=f"s{seed}"), max_steps=8, quiet=True)
    batches, keys = zip(*drawn)
    assert len(set(map(str, batches))) == len(set(keys)) == 16


def first_images(model, images, labels, generator, config):
    "In place of a step's losses: nothing but its augmentation."
    ingredients.augment(images, generator, .5, 0.)
    return None, None


def test_two_processes_take_the_two_halves(config, drawn, monkeypatch):
    "Of the batch, with the generator of the whole."
    monkeypatch.setattr(training, "average", lambda row: row)
    monkeypatch.setattr(training, "forward_loss", first_images)
    for rank, parts in ((0, 1), (0, 2), (1, 2)):
        trainer = Trainer(config, quiet=True)
        trainer.parts = parts
        trainer.accelerator = SimpleNamespace(process_index=rank, backward=lambda loss: None,
                                              unwrap_model=lambda model: model)
        trainer.train_step(next(iter(trainer.sampler)))
    (whole, _), (first, a), (second, b) = drawn
    assert first + second == whole and len(first) == len(second) == 8 and a == b


def test_decay_and_smoothing_reach_optimiser_and_losses(config):
    rows = []
    for smoothing in (0., .1):
        trainer = Trainer(replace(config, label_smoothing=smoothing, weight_decay=.125), quiet=True)
        trainer.train_step(next(iter(trainer.sampler)))
        rows.append(trainer.rows[0])
    assert (rows[0][:, 0] != rows[1][:, 0]).all() and torch.equal(rows[0][:, 1], rows[1][:, 1])
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [.125]


def test_a_budget_of_nothing_leaves_a_checkpoint_without_a_step(config):
    for budget in (dict(max_seconds=0), dict(max_steps=0)):
        assert fit(config, **budget, quiet=True).metrics is None
        assert torch.load(run_paths(config).checkpoint, weights_only=True)["rows"] == []
    with pytest.raises(ValueError, match="0 or more"): fit(config, max_steps=-1, quiet=True)


def test_a_launchers_precision_is_not_taken(config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator(config.device).mixed_precision == "no"


def test_an_infinite_loss_stops_the_run(config):
    fit(config, max_steps=2, quiet=True)
    trainer = Trainer(config, quiet=True)
    trainer.load()
    with torch.no_grad(): trainer.model.heads[0].reduce.weight.fill_(torch.inf)
    trainer.train_epoch(2, lambda *_: None)
    complaint = "iteration 3.*keeps the last good state"
    with pytest.raises(FloatingPointError, match=complaint): trainer.save()


MIDDLE = [pytest.param(name, marks=pytest.mark.slow) for name in ("BDB", "BDB3", "PC1")]


@pytest.mark.parametrize("variant", ["G", *MIDDLE, "PC2"])
def test_every_variant_learns(config, variant):
    run = fit(replace(config, variant=variant, epochs=16, decay_at=()), quiet=True)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert run.history[-1]["accuracy"][0] > 4/16 # four times as good as a guess among 16 people


@pytest.mark.parametrize("settings", [
    dict(cam_grad="batch"), dict(accumulate=True), dict(detach_partner=True), dict(partner="any"),
    dict(partner="positive"), dict(label_smoothing=.1, warmup_shape="staircase"),
    dict(precision="bf16"), dict(channels_last=False), dict(random_erasing=.5),
    dict(fill="zeros", pool="avg"),
    dict(partner="position", start="released", schedule_ahead=1)])
@pytest.mark.slow
def test_every_setting_runs(config, settings):
    run = fit(replace(config, epochs=2, **settings), quiet=True)
    assert 0 < run.metrics.mAP <= 1


@pytest.mark.slow
def test_two_processes_share_a_run_and_go_on_with_it(config, tmp_path):
    """Half of the identities of each batch to each process; one result and one line, by the first;
    and one process can go on with it."""
    cut = replace(config, out=tmp_path/"cut")
    launch = ["torchrun", "--standalone", "--nproc_per_node", "2", "--no-python", "--"]
    for c, *more in ((config,), (cut, "--max_steps", "6"), (cut,)):
        done = subprocess.run([*launch, *words(c), *more], capture_output=True, text=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("\n") == 1
        if more:
            alone = replace(cut, out=tmp_path/"alone")
            shutil.copytree(cut.out, alone.out)
    same(read_run(run_paths(config).result), read_run(run_paths(cut).result))
    result = json.loads(run_paths(config).result.read_text())
    assert result["processes"] == 2 and result["history"][-1]["loss"] < result["history"][0]["loss"]
    assert result_of(fit(alone, quiet=True))["processes"] == "2 then 1"


def test_what_one_process_must_do_is_refused_to_many():
    launch = ["torchrun", "--standalone", "--nproc_per_node", "2", "--no-python", "--"]
    done = subprocess.run([*launch, "gcutmix_reproduce"], capture_output=True, text=True)
    assert done.returncode and "gcutmix_reproduce is the work of one process" in done.stderr


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_asked_for_in_vain(config, device):
    if getattr(torch, device).is_available(): pytest.skip("it is there")
    with pytest.raises(RuntimeError, match="device='auto'"):
        fit(replace(config, device=device), quiet=True)


@pytest.mark.cuda
def test_gpu_resumes_exactly_with_the_images_on_it(config, tmp_path):
    config = replace(config, device="cuda", precision="fp32")
    torch.backends.cudnn.deterministic = True
    whole = fit(config, quiet=True)
    assert Trainer(replace(config, name="x"), quiet=True).images.device.type == "cuda"
    cut = replace(config, out=tmp_path/"cut")
    fit(cut, max_steps=5, quiet=True)
    same(whole, fit(cut, quiet=True))


@pytest.mark.cuda
def test_gpu_trains_in_bfloat16(config):
    run = fit(replace(config, device="cuda", epochs=10, decay_at=()), quiet=True)
    assert json.loads(run.paths.result.read_text())["precision"] == "bf16"
    assert run.history[-1]["loss"] < run.history[0]["loss"]


@pytest.mark.cuda
def test_gpu_compiled_backbone_gives_the_same_embeddings(config):
    trainer = Trainer(replace(config, device="cuda", precision="fp32"), quiet=True)
    images, labels = torch.randn(16, 3, 96, 32, device="cuda"), torch.arange(4).repeat_interleave(4)
    model = trainer.model.eval()
    plain = model(images)
    model.backbone.compile()
    torch.testing.assert_close(model(images), plain, rtol=1e-3, atol=1e-3)


def test_a_phase_trains_its_part_alone(config, monkeypatch):
    "The heads in the first half of the epochs, then everything."
    phases = variants.Phase(.5, ("heads",)), variants.Phase(.5)
    record = replace(variants.VARIANTS["PC2"], phases=phases)
    monkeypatch.setitem(variants.VARIANTS, "PC2", record)
    trainer = Trainer(replace(config, channels_last=False), quiet=True)
    start = {k: v.clone() for k, v in trainer.model.named_parameters()}
    moved = []
    for _ in range(3):
        trainer.train_epoch(99, lambda *_: None)
        trainer.epoch, trainer.rows = trainer.epoch + 1, []
        now = dict(trainer.model.named_parameters())
        moved.append({k for k in start if not torch.equal(start[k], now[k])})
    assert moved[0] == moved[1] == {k for k in start if k.startswith("heads")}
    assert moved[2] == set(start)
