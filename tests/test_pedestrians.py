"The drawn pedestrians: what does not fit into their notebook."
import json, os, signal, subprocess, sys, time
from dataclasses import replace
from itertools import product

import numpy as np
import psutil
import pytest
from PIL import Image

from gcutmix import pedestrians
from gcutmix.drawn import scenes
from gcutmix.drawn.bodies import Canvas, Pose
from gcutmix.drawn.people import figure
from gcutmix.pedestrians import (CUES, FOLDERS, compose, cue_masks, draw, place_to_draw,
                                 random_person, scene, scene_of, write_pedestrians)

SMALL = dict(train_ids=3, test_ids=3, images=5, size=(48, 16))

def pixels(root):
    pictures = sorted(root.rglob("*.png"))
    return {path.relative_to(root).as_posix(): np.asarray(Image.open(path)) for path in pictures}

def written(root, **changes): return pixels(write_pedestrians(root, **{**SMALL, **changes}))

def same(a, b): return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)

def test_the_number_of_processes_does_not_matter(tmp_path):
    one, three = (written(tmp_path/str(n), workers=n) for n in (1, 3))
    assert len(one) == 6*5 and same(one, three)

def test_a_prefix_of_the_identities_is_the_same_people(tmp_path):
    few, more = (written(tmp_path/str(n), train_ids=n, test_ids=0, images=4) for n in (2, 4))
    assert all(np.array_equal(image, more[file]) for file, image in few.items())

def test_seeds_differ(tmp_path):
    a, b = (written(tmp_path/str(seed), seed=seed) for seed in (0, 1))
    assert not any(np.array_equal(a[file], b[file]) for file in a)

def test_what_is_there_is_kept(tmp_path):
    root = write_pedestrians(tmp_path/"p", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert write_pedestrians(root, **SMALL) == root
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}

@pytest.mark.parametrize("change", [
    dict(train_ids=4), dict(test_ids=2), dict(images=6), dict(size=(48, 24)), dict(seed=1)])
def test_other_parameters_are_an_error(tmp_path, change):
    root = write_pedestrians(tmp_path/"p", **SMALL)
    with pytest.raises(ValueError, match="asked for"):
        write_pedestrians(root, **{**SMALL, **change})

def test_an_older_drawing_is_an_error(tmp_path, monkeypatch):
    root = write_pedestrians(tmp_path/"p", **SMALL)
    monkeypatch.setattr(pedestrians, "DRAWING", pedestrians.DRAWING + 1)
    with pytest.raises(ValueError, match="'drawing'"): write_pedestrians(root, **SMALL)

def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path/"mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="no pedestrians.json"):
        write_pedestrians(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path/"p").mkdir()
    assert len(pixels(write_pedestrians(tmp_path/"p", **SMALL))) == 30

def test_an_error_leaves_nothing(tmp_path, monkeypatch):
    calls = iter(range(7))
    def failing(*args, **kwargs):
        if next(calls) == 6: raise OSError("no space left")
        return draw(*args, **kwargs)
    monkeypatch.setattr(scenes, "draw", failing)
    with pytest.raises(OSError, match="no space"):
        write_pedestrians(tmp_path/"p", workers=1, **SMALL)
    assert list(tmp_path.iterdir()) == []

@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interruption_leaves_nothing(tmp_path, workers):
    code = (f"from gcutmix.pedestrians import write_pedestrians; "
            f"write_pedestrians({str(tmp_path/'p')!r}, 5000, 0, workers={workers})")
    # A test run in the background of a shell inherits "ignore Ctrl-C"; the job must not.
    def listen(): signal.signal(signal.SIGINT, signal.SIG_DFL)
    job = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL,
                           start_new_session=True, preexec_fn=listen)
    deadline = time.monotonic() + 120
    while not any(tmp_path.rglob("*.png")) and time.monotonic() < deadline: time.sleep(.05)
    os.killpg(job.pid, signal.SIGINT) # as Ctrl-C in a terminal does
    assert job.wait(60) != 0
    assert list(tmp_path.iterdir()) == []

@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("name, status", [("SIGKILL", -9), ("SIGTERM", 143)])
def test_workers_end_with_their_parent(tmp_path, name, status):
    code = ("from gcutmix import pedestrians as p; write = p.write_pedestrians\n"
            "p.write_pedestrians = lambda *args: write(*args, workers=2)\n"
            "p.gcutmix_pedestrians()")
    line = [sys.executable, "-c", code, tmp_path/"p", "--ids", "5000"]
    job = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(tmp_path.rglob("*.png")) and time.monotonic() < deadline: time.sleep(.05)
    workers = psutil.Process(job.pid).children()
    job.send_signal(signal.Signals[name])
    _, said = job.communicate(timeout=60)
    assert job.returncode == status and len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=10)[1]
    if name == "SIGTERM": assert "stopped" in said and list(tmp_path.iterdir()) == []

def test_a_mistyped_root_is_told(tmp_path, capsys):
    (tmp_path/"file").touch()
    assert place_to_draw(tmp_path/"peple", named=True) == tmp_path/"peple"
    said = f"no pedestrians in {tmp_path/'peple'}, which is new: drawing 300 people in"
    assert said in capsys.readouterr().out
    for named in (True, False): assert place_to_draw(tmp_path, named) == tmp_path/"pedestrians"
    with pytest.raises(NotADirectoryError, match="is a file"): place_to_draw(tmp_path/"file", True)

def test_a_failing_worker_is_reported(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(pedestrians, "check_numbers", lambda *numbers: None)
    with pytest.raises(RuntimeError, match="2 of 2 drawing processes failed"):
        write_pedestrians(tmp_path/"p", workers=2, **{**SMALL, "size": (48, "x")})
    assert "Traceback" in capfd.readouterr().err and list(tmp_path.iterdir()) == []

def test_another_process_that_was_faster_wins(tmp_path, monkeypatch):
    def meanwhile(**share):
        monkeypatch.undo()
        write_pedestrians(tmp_path/"p", workers=1, **SMALL)
        pedestrians.draw_files(**share)
    monkeypatch.setattr(pedestrians, "draw_files", meanwhile)
    assert len(written(tmp_path/"p", workers=1)) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["p"]

def test_another_process_that_was_faster_by_a_moment_wins(tmp_path, monkeypatch):
    "It ends between our look at the folder and our own renaming, which then fails."
    rename, failed = os.replace, []
    def late(new, target):
        if target != tmp_path/"p": return rename(new, target) # a file in the folder
        monkeypatch.undo()
        write_pedestrians(tmp_path/"p", workers=1, **SMALL)
        failed.append(target)
        rename(new, target)
    monkeypatch.setattr(os, "replace", late)
    assert len(written(tmp_path/"p", workers=1)) == 30 and failed
    assert [path.name for path in tmp_path.iterdir()] == ["p"]

def test_another_process_with_other_people_is_an_error(tmp_path, monkeypatch):
    def meanwhile(**share):
        monkeypatch.undo()
        write_pedestrians(tmp_path/"p", workers=1, **{**SMALL, "seed": 1})
    monkeypatch.setattr(pedestrians, "draw_files", meanwhile)
    with pytest.raises(ValueError, match="asked for"):
        write_pedestrians(tmp_path/"p", workers=1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]

def test_processes_at_once_make_one_data_set(tmp_path):
    code = (f"from gcutmix.pedestrians import write_pedestrians; "
            f"write_pedestrians({str(tmp_path/'p')!r}, workers=1, **{SMALL})")
    jobs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [job.wait(120) for job in jobs] == [0, 0, 0]
    assert len(pixels(tmp_path/"p")) == 30 and [path.name for path in tmp_path.iterdir()] == ["p"]

def test_a_drawing_process_needs_no_torch():
    code = "import sys, gcutmix.drawn.scenes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

@pytest.mark.parametrize("images", [4, 5, 7])
def test_every_query_has_matches_in_the_other_camera(tmp_path, images):
    root = write_pedestrians(tmp_path/"p", 1, 4, images, (48, 16))
    names = {name: [path.stem.split("_") for path in (root/folder).iterdir()]
             for name, folder in FOLDERS.items()}
    assert sum(map(len, names.values())) == 5*images and len(names["query"]) == 8
    for pid, camid, _ in names["query"]:
        assert any(p == pid and c != camid for p, c, _ in names["gallery"])
    assert not {p for p, *_ in names["train"]} & {p for p, *_ in names["query"]}

@pytest.mark.parametrize("size", [
    (96, 32), (97, 33), (64, 64), (31, 17), (48, 96), (120, 20), (8, 4)])
def test_any_size(size):
    s = scene(0, 5, 2, 1)
    assert draw(*s, size).size == size[::-1]
    owners = sum(mask.astype(int) for mask in cue_masks(*s, size).values())
    assert np.array_equal(owners, np.ones(size))

def test_paint_numbers_fit_into_a_byte():
    for seed, pid in product(range(3), range(100)):
        assert len(compose(*scene(seed, pid, 1 + pid%2, 1), (24, 8)).paints) < 200

def test_all_cues_occur_and_stay_small_or_large():
    masks = [cue_masks(*scene(0, pid, 1 + pid%2, 1)) for pid in range(1, 61)]
    share = {cue: np.mean([m[cue].mean() for m in masks]) for cue in CUES}
    assert all(share.values())
    assert share["background"] > .4 and share["top"] > .08 and share["logo"] < .02

def test_masks_are_where_leaving_out_changes_the_picture():
    for pid in range(1, 25):
        s = scene(2, pid, 1 + pid%2, 2)
        full, masks = np.asarray(draw(*s), int), cue_masks(*s)
        for cue in CUES:
            change = np.abs(full - np.asarray(draw(*s, drop={cue}), int)).max(2)
            if masks[cue].sum() > 12: assert (change[masks[cue]] > 6).mean() > .5, (pid, cue)
            elif not masks[cue].any(): # slivers thinner than a pixel
                assert (change > 24).sum() < 12, (pid, cue)

def test_dropping_everything_leaves_no_identity():
    camera, view = scene(0, 1, 1, 1)[1:]
    def with_one_body(p):
        return replace(p, height=1., build=1., top=("tee", p.top[1]), shoes=("low", p.shoes[1]),
                       trousers=("trousers", p.trousers[1]))
    same_body = [with_one_body(random_person(0, pid)) for pid in (1, 2)]
    a, b = (np.asarray(draw(p, camera, view, drop=CUES)) for p in same_body)
    assert np.array_equal(a, b)

def test_a_wrong_cue_is_an_error():
    with pytest.raises(ValueError, match="choose from background, skin"):
        draw(*scene(0, 1, 1, 1), drop={"shirt"})

def test_identity_is_stable_and_cameras_differ():
    assert scene(0, 9, 1, 1)[0] is scene(0, 9, 2, 3)[0]
    assert scene(0, 9, 1, 1)[1] == scene(0, 8, 1, 2)[1] != scene(0, 9, 2, 1)[1]
    assert len({scene(0, *key)[2] for key in product(range(5), (1, 2), (1, 2))}) == 20

def test_a_full_turn_comes_back():
    person = random_person(0, 2)
    poses = [Pose(angle, .7, .5) for angle in (75, 75 - 720)]
    a, b = (np.asarray(Canvas((96, 32)).paint(figure(person, pose)).image) for pose in poses)
    assert (a != b).mean() < 1e-3

def test_a_file_knows_its_scene(tmp_path):
    root = write_pedestrians(tmp_path/"p", seed=3, **SMALL)
    for path in root.rglob("*.png"):
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(draw(*scene_of(path))))

def test_console_script(tmp_path):
    script = tmp_path/"script.py"
    script.write_text("from gcutmix.pedestrians import gcutmix_pedestrians as main\nmain()\n")
    args = [tmp_path/"p", *"--ids 2 --images 4 --height 48 --width 16 --seed 5".split()]
    command = [sys.executable, script, *args]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4 pedestrians, 16 pictures of 48x16" in run.stdout
    assert json.loads((tmp_path/"p"/"pedestrians.json").read_text())["seed"] == 5

@pytest.mark.parametrize("key, green, occluded", [
    ((3, 1, 1), [127, 115, 111, 85, 102, 128, 110, 177, 84, 94, 132, 125, 94, 78, 98, 228, 209, 111,
                 91, 106], 0),
    ((28, 2, 1), [37, 99, 29, 26, 91, 24, 89, 42, 81, 93, 103, 96, 108, 48, 93, 111, 47, 54, 46,
                  55], 156)]) # with a passer-by
def test_the_drawing_has_not_changed(key, green, occluded):
    "Committed results hold for these pictures; if this must fail, raise DRAWING, run them again."
    s = scene(0, *key)
    assert np.abs(np.asarray(draw(*s), int)[20::24, 2::6, 1].ravel() - green).max() <= 2
    assert abs(int(cue_masks(*s)["occluder"].sum()) - occluded) <= 2

def test_one_cue_may_be_named_without_a_set():
    s = scene(0, 1, 1, 1)
    assert np.array_equal(np.asarray(draw(*s, drop="hat")), np.asarray(draw(*s, drop={"hat"})))

@pytest.mark.parametrize("people", [dict(train_ids=-3), dict(test_ids=-1)])
def test_no_people_no_data_set(people, tmp_path):
    with pytest.raises(ValueError, match="0 or more of each"):
        write_pedestrians(tmp_path/"none", **people)
    assert not list(tmp_path.iterdir())
