"What the tests share."
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent
# The tools of the environment that runs the tests come first, also where it was not activated.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# A warning raised in the package is an error, here and in every process that a test starts; there
# a name stands for one module only. A chapter's own cells are `__main__`.
FILES = [path.relative_to(ROOT).with_suffix("") for path in (ROOT/"gcutmix").rglob("*.py")]
STRICT = ["__main__", "gcutmix", *(".".join(file.parts) for file in FILES)]
os.environ["PYTHONWARNINGS"] = ",".join(f"error:::{name}" for name in STRICT)
# Decoded pictures vanish with the tests, those of other processes too.
CACHE = tempfile.TemporaryDirectory()
os.environ["GCUTMIX_CACHE"] = CACHE.name

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and files")


DIES = """
import os, runpy, shutil, signal, sys
from gcutmix.training import Trainer

kill = getattr(signal, "SIGKILL", signal.SIGTERM) # Windows has no more than that
last, step = int(sys.argv[1]), Trainer.train_step

def train_step(self, batch):
    step(self, batch)
    if self.done == last - 2: self.save() # as the minute's checkpoint of a long run
    if self.done == last: os.kill(os.getpid(), kill)

Trainer.train_step = train_step
sys.argv = sys.argv[2:]
runpy.run_path(shutil.which(sys.argv[0]), run_name="__main__")
"""


def killed_at(step, command):
    "Run a command that trains; kill -9 it after `step` iterations, two after its last checkpoint."
    line = [sys.executable, "-c", DIES, str(step), *command]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode in (-9, signal.SIGTERM), done.stderr[-3000:]


def pytest_configure(config):
    for name in ("SIGINT", "SIGHUP"): # whoever starts the tests may have switched them off
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, usual)
    config.addinivalue_line("markers", "slow: takes long and seldom breaks; `make test-slow`")
    config.addinivalue_line("markers", "cuda: needs a GPU; `gcutmix_bench --part gpu` runs these")
    config.addinivalue_line("filterwarnings", "error:::gcutmix")


def pytest_collection_modifyitems(items):
    "The longest test first, so that it does not run alone at the end; a GPU's only where it is."
    items.sort(key=lambda item: item.path.name != "test_wheel.py")
    if torch.cuda.is_available(): return
    for item in items:
        if item.get_closest_marker("cuda"): item.add_marker(pytest.mark.skip("needs a CUDA GPU"))


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    "Sixteen training and eight test pedestrians, four pictures of each."
    from gcutmix.pedestrians import write_pedestrians
    root = tmp_path_factory.mktemp("data")/"people"
    return write_pedestrians(root, train_ids=16, test_ids=8, images=4)
