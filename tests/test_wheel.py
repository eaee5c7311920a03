"The built wheel, alone in an empty environment outside the repository, trains on pedestrians."
import json
import os
import subprocess
import sys
import zipfile

import pytest

from conftest import ROOT


def run(*command, cwd):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=out) # an sdist, and the wheel from the sdist
    return next(out.glob("*.whl"))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "gcutmix/gradcam.py" in names
    assert all(name.startswith(("gcutmix/", "gcutmix-")) for name in names)
    assert not any(name.endswith((".ipynb", ".png", ".jpg")) for name in names)


def test_wheel_trains_in_an_empty_environment(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path/"env", cwd=tmp_path)
    bin = tmp_path/"env"/"bin"
    run(bin/"python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    where = run(bin/"python", "-c", "import gcutmix; print(gcutmix.__file__)", cwd=tmp_path)
    assert str(tmp_path) in where
    run(bin/"gcutmix_pedestrians", "people", "--ids", 16, "--images", 4, cwd=tmp_path)
    run(bin/"gcutmix_train", "--preset", "demo", "--dataset", "pedestrians", "--root", "people", "--p", 8, "--epochs", 2, "--warmup", 1,
        "--decay_at", "1,2", cwd=tmp_path)
    assert "0 of 12 runs" in run(bin/"gcutmix_reproduce", "--data-root", "people", "--budget", 0, cwd=tmp_path)
    result = json.loads((tmp_path/"runs"/"PC2-tiny-s0.json").read_text())
    assert result["iterations"] == 4 and 0 < result["metrics"]["mAP"] < 1
    assert result["code"] == "0.1.0"
    out = run(bin/"gcutmix_evaluate", "runs/PC2-tiny-s0.safetensors", "--root", "people", cwd=tmp_path)
    assert f"{100*result['metrics']['rank1']:.1f}" in out
