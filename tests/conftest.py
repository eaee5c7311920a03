"What the tests share."
import os
import sys
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent
# The tools of the environment that runs the tests come first, also where it was not activated.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="session")
def repository():
    "The checkout's top folder."
    return ROOT


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    "Sixteen training and eight test pedestrians, four pictures of each."
    from gcutmix.pedestrians import write_pedestrians
    return write_pedestrians(tmp_path_factory.mktemp("data")/"people", train_ids=16, test_ids=8, images=4)
