"Other people's layouts, against torchvision's listing, and in the commands."
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from gcutmix.base.fingerprints import differences, fingerprints
from gcutmix.commands import gcutmix_evaluate
from gcutmix.data import load_dataset
from gcutmix.evaluation import evaluate, extract_features
from gcutmix.images import load_splits
from gcutmix.model import load_model
from gcutmix.training import fit, make_preset

PARTS = dict(bounding_box_train="train", query="query", bounding_box_test="gallery")
PATTERN = "(?P<pid>[0-9]+)_c(?P<camid>[0-9]+)"


@pytest.fixture
def folders(people, tmp_path):
    "The same people, in a folder for each of them; names that say nothing."
    for part, name in PARTS.items():
        for i, path in enumerate(sorted((people/part).iterdir())):
            place = tmp_path/"mine"/name/f"person {path.name[:4]}"
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place/f"{i}.png")
    return tmp_path/"mine"


def config(root, out, **more):
    return make_preset("demo", **{"dataset": "mine", **more}, root=root, out=out, p=4, epochs=1,
                       warmup=1, decay_at=(), dim=16, eval_every=0, variant="G", device="cpu")


def test_a_folder_for_each_person_as_torchvision_lists_it(folders):
    data = load_dataset("mine", folders)
    for split, name in zip(data.splits, PARTS.values()):
        theirs = ImageFolder(folders/name)
        ours = dict(zip(map(str, split.paths), split.labels))
        assert ours == dict(theirs.samples)
    cameras = {*data.query.camids, *data.gallery.camids}
    assert len(cameras) == len(data.query) + len(data.gallery)


def test_a_pattern_reads_what_the_reader_of_names_reads(people):
    a, b = load_dataset("people", people), load_dataset("people", people, pattern=PATTERN)
    for one, other in zip(a.splits, b.splits):
        assert [*map(str, one.paths)] == [*map(str, other.paths)]
        assert (one.pids == other.pids).all() and (one.camids == other.camids).all()
    assert differences(fingerprints(a), fingerprints(b)) == ""


def test_train_and_evaluate_without_cameras(folders, tmp_path, capfd):
    run = fit(config(folders, tmp_path/"runs"), quiet=True)
    assert fit(config(folders, tmp_path/"runs"), quiet=True).metrics == run.metrics
    shutil.rmtree(folders/"train") # whoever only tests needs none
    gcutmix_evaluate(str(run.paths.model), root=str(folders))
    assert f"mAP {run.metrics.mAP:.1%}" in capfd.readouterr().out
    with pytest.raises(FileNotFoundError, match="no train in"): load_dataset("mine", folders)


def test_train_alone(folders, tmp_path):
    for part in ("query", "gallery"): shutil.rmtree(folders/part)
    with pytest.raises(FileNotFoundError, match="no query in .*mine-validation"):
        load_dataset("mine", folders)
    run = fit(config(folders, tmp_path/"runs", dataset="mine-validation"), quiet=True)
    assert run.metrics is not None
    assert load_dataset("all-validation", folders/"train").train.num_pids == 12


def test_no_camera_rule(people, tmp_path):
    "Pictures of the query's own camera count; the result is a file of its own."
    run = fit(config(people, tmp_path, dataset="people"), quiet=True)
    gcutmix_evaluate(str(run.paths.model), root=str(people), no_camera_rule=True)
    files = list(tmp_path.glob("*no_camera_rule.eval.json"))
    data = load_dataset("people", people)
    model = load_model(run.paths.model)[0]
    q, g = (extract_features(model, x) for x in load_splits(data.splits[1:], (96, 32)))
    nobody = np.full(len(q), -1)
    wanted = evaluate(q, data.query.pids, nobody, g, data.gallery.pids, data.gallery.camids)
    assert json.loads(files[0].read_text())["metrics"]["mAP"] == wanted.mAP != run.metrics.mAP


def test_two_data_sets_at_once(people, folders):
    shutil.copytree(people, folders.parent/"yours")
    both = load_dataset("mine+yours", folders.parent)
    one, two = load_dataset("mine", folders), load_dataset("yours", folders.parent)
    n = len(one.train)
    assert both.train.num_pids == one.train.num_pids + two.train.num_pids
    assert (np.unique(both.train.pids[:n], return_inverse=True)[1] == one.train.labels).all()
    assert not set(both.query.pids) & set(both.train.pids)
    images = load_splits(both.splits, (24, 8), progress=False)
    assert (images[0][n:] == load_splits([two.train], (24, 8), progress=False)[0]).all()
    assert load_dataset("mine+yours-validation", folders.parent).query.num_pids
    with pytest.raises(ValueError, match="two of them are in"):
        load_dataset("mine+again", folders)


def test_people_who_change_places_are_seen(folders):
    before = fingerprints(load_dataset("mine", folders))
    a, b = sorted((folders/"query").iterdir())[:2]
    path = sorted(a.iterdir())[-1] # pictures and their order stay
    path.rename(b/path.name)
    after = fingerprints(load_dataset("mine", folders, check=False))
    assert "query: as many pictures and people, but sorted otherwise" in differences(before, after)


@pytest.mark.parametrize("pattern, said", [("(", "expected a regular"), ("x", "has no group pid"),
                                           ("(?P<pid>anna)", "finds nobody in")])
def test_patterns_that_find_nobody(people, pattern, said):
    with pytest.raises(ValueError, match=said): load_dataset("people", people, pattern=pattern)


def test_msmt17_counts_both_parts_apart(tmp_path):
    lines = dict(train="0000/0000_000_01_a_1_0.jpg 0", query="0000/0000_000_02_a_1_0.jpg 0",
                 gallery="0000/0000_001_03_a_1_0.jpg 0")
    for name, line in lines.items():
        Path(tmp_path/f"list_{name}.txt").write_text(line, encoding="utf-8")
    data = load_dataset("msmt17", tmp_path, check=False)
    assert [split.pids.tolist() for split in data.splits] == [[1], [2], [2]]
    assert data.gallery.camids.tolist() == [3] and data.query.camids.tolist() == [2]
    assert data.query.paths[0] == tmp_path/"test/0000/0000_000_02_a_1_0.jpg"
    with pytest.raises(ValueError, match="expected 32,621 of 1,041"):
        load_dataset("msmt17", tmp_path)
