"""Many processes mean the same as one.
`torchrun --nproc_per_node 2 tests/test_processes.py FOLDER VARIANT ...` is what the tests start."""
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import gcutmix.base.cache as cache
from gcutmix.base.locks import Stopped, stoppable
from gcutmix.base.processes import in_turn
from gcutmix.commands import gcutmix_train
from gcutmix.config import make_preset
from gcutmix.evaluation import extract_features
from gcutmix.training import Trainer, fit
from gcutmix.variants import VARIANTS

FEW = "PC2", "BDB", "G+CutMix", "G+DropBlock"
# its gradient jumps where a window ends between two cells: round-off decides to which side
LEFT_OUT = "HA-CNN",


@contextmanager
def in_float64():
    torch.set_default_dtype(torch.float64)
    try: yield
    finally: torch.set_default_dtype(torch.float32)


def made(folder, variant, **settings):
    usual = dict(variant=variant, p=4, dim=32, epochs=20, device="cpu")
    config = make_preset("demo", "people", root=folder/"people", out=folder/"runs",
                         **usual | settings)
    return Trainer(config, quiet=True)


def gradient(trainer):
    found = [p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None]
    return torch.cat(found)


def flat(tensors): return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def first_step(folder, variant, **settings):
    "Gradient, losses and running statistics after one step in float64."
    with in_float64():
        trainer = made(folder, variant, **settings)
        trainer.train_step(next(iter(trainer.sampler)))
        return [gradient(trainer), trainer.rows[0].nan_to_num(), flat(trainer.network.buffers())]


def ten_steps(folder, variant="G", eps=1e-8):
    "Weights and running statistics after ten steps, and the metrics then."
    trainer = made(folder, variant)
    for group in trainer.optimizer.param_groups: group["eps"] = eps
    for epoch, steps in enumerate((4, 4, 2)):
        trainer.epoch, trainer.rows = epoch, []
        trainer.train_epoch(steps, lambda *_: None)
    with trainer.sharing(): metrics = trainer.test().numbers()
    return [flat(trainer.network.parameters()), flat(trainer.network.buffers()), metrics]


def embedded(folder):
    "Features of the training images, sixteen batches that lie on all processes."
    trainer = made(folder, "PC2")
    def embed(some): return extract_features(trainer.network, some)
    with trainer.sharing(): return torch.cat(in_turn(embed, trainer.images.split(4)))


def work(folder, variants):
    "What any number of processes finds."
    decoded, write = [], cache.write_cache
    def counted(file, *more):
        decoded.append(file.name)
        write(file, *more)
    cache.write_cache = counted
    try:
        found = dict(decoded=decoded, steps={name: first_step(folder, name) for name in variants},
                     float32=ten_steps(folder), features=embedded(folder))
        with in_float64():
            found["float64"] = ten_steps(folder)
            # gradients that are nothing but round-off make no full steps with this eps
            found["PC2"] = ten_steps(folder, "PC2", eps=1e-3)
        for settings in (dict(mining="local", p=8), dict(sync_bn=False), dict(partner="position")):
            found["steps"][str(settings)] = first_step(folder, "PC2", **settings)
        return found
    finally: cache.write_cache = write


def stops(folder):
    "How many steps are done if the second process is late, and if it was sent a signal; its line."
    second = os.environ["RANK"] == "1"
    trainer = made(folder, "G")
    def sent(done, where):
        if second and done == 2: signal.raise_signal(signal.SIGTERM)
    with trainer.sharing():
        trainer.train_epoch(4, sent, deadline=0 if second else math.inf)
        late = trainer.done
        try:
            with stoppable(trainer.leave): trainer.train_epoch(4, sent)
        except Stopped as stopped: return late, trainer.done, stopped.status, str(stopped)


def command(what, *words):
    "`gcutmix_train`, whose second process fails or is sent a signal in its fifth step."
    step = Trainer.train_step
    def train_step(self, batch):
        step(self, batch)
        if self.done != 5 or os.environ["RANK"] != "1": return
        if what == "fails": raise OSError("its disk is gone")
        signal.raise_signal(getattr(signal, what))
    Trainer.train_step = train_step
    sys.argv = ["gcutmix_train", *words]
    gcutmix_train()


def endless(folder):
    "A training that somebody else ends."
    (folder/f"pid-{os.environ['RANK']}").write_text(f"{os.getpid()}")
    fit(make_preset("demo", "people", root=folder/"people", out=folder/"runs", p=4, dim=32,
                    epochs=9999, device="cpu"), quiet=True)


def launch(*words, parts=2, start=subprocess.run, **how):
    line = ["torchrun", "--standalone", "--nproc_per_node", f"{parts}", *map(str, words)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return start(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, **how)


def apart(found, expected): return float((found - expected).norm()/expected.norm())


def check(found, one):
    "Two results of `work`, by many processes and by one."
    for name, values in found["steps"].items():
        errors = [apart(*pair) for pair in zip(values, one["steps"][name])]
        if "mining" in name or "sync" in name: assert min(errors) > 1e-3, name
        else: assert max(errors) < 1e-8, (name, errors)
    assert torch.equal(found["features"], one["features"])
    for kind, least in dict(float64=1e-10, PC2=1e-10, float32=.05).items():
        *values, metrics = found[kind]
        assert max(apart(*pair) for pair in zip(values, one[kind])) < least
        if kind != "float32": assert metrics == one[kind][-1]


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_many_processes_mean_the_same_as_one(parts, people, tmp_path):
    "Gradients, ten steps, running statistics, features and metrics; each picture decoded once."
    shutil.copytree(people, tmp_path/"people", ignore=shutil.ignore_patterns(".gcutmix"))
    variants = FEW if parts == 2 else [name for name in VARIANTS if name not in LEFT_OUT]
    done = launch(__file__, tmp_path, *variants, parts=parts)
    assert done.returncode == 0, done.stdout[-3000:]
    found = [torch.load(tmp_path/f"{rank}.pt") for rank in range(parts)]
    assert sum(len(each["decoded"]) for each in found) == 3
    one = work(tmp_path, variants)
    for each in found:
        check(each, one)
        assert each["stops"][:3] == (0, 3, 128 + signal.SIGTERM)
        assert "stopped after iteration 3 of 80; the same call goes on from" in each["stops"][3]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["SIGINT", "SIGTERM", "fails"])
def test_what_happens_to_one_ends_the_command_in_all_with_one_line(what, people, tmp_path):
    shutil.copytree(people, tmp_path/"people", ignore=shutil.ignore_patterns(".gcutmix"))
    words = dict(preset="demo", dataset="people", variant="G", root=tmp_path/"people",
                 out=tmp_path/"runs", p=4, dim=32, device="cpu", epochs=20)
    line = [word for key, value in words.items() for word in (f"--{key}", value)]
    since = time.monotonic()
    done = launch("--", __file__, tmp_path, "command", what, *line)
    seconds = time.monotonic() - since
    print(f"{what}: {seconds:.0f} s with its start")
    assert done.returncode and seconds < 90
    said = [line for line in done.stdout.splitlines() if "gcutmix_train:" in line]
    if what == "fails": assert any("its disk is gone" in line for line in said), done.stdout
    else:
        assert len(said) == 1 and "after iteration 5 of 80; the same call goes on from" in said[0]
        assert list((tmp_path/"runs").glob("*.checkpoint.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_ends_the_job_within_a_minute(number, people, tmp_path):
    shutil.copytree(people, tmp_path/"people", ignore=shutil.ignore_patterns(".gcutmix"))
    job = launch(__file__, tmp_path, "endless", start=subprocess.Popen)
    while job.poll() is None and not (tmp_path/"pid-1").exists(): time.sleep(.1)
    time.sleep(10)
    since = time.monotonic()
    os.kill(int((tmp_path/"pid-1").read_text()), number)
    said, _ = job.communicate(timeout=100)
    seconds = time.monotonic() - since
    print(f"{number.name}: {seconds:.0f} s")
    assert job.returncode and seconds < 60
    assert "no sign of life" in said if number == signal.SIGSTOP else "SIGKILL" in said


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    if sys.argv[2:] == ["endless"]: endless(folder)
    if sys.argv[2] == "command": command(*sys.argv[3:])
    torch.save(work(folder, sys.argv[2:]) | {"stops": stops(folder)}, folder/f"{rank}.pt")
