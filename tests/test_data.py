"Readers on small generated trees, the original CUHK03 release, what may be wrong with a folder."
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from gcutmix import data as D
from gcutmix.base import fingerprints as F
from gcutmix.base.files import provenance
from gcutmix.losses import batch_hard_triplet, branch_losses
from gcutmix.samplers import PKSampler
from gcutmix.training import Trainer, fit, make_preset

PARTS = dict(train="bounding_box_train", query="query", gallery="bounding_box_test")

def picture(path, size=(40, 20), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)

def tree(root, train=(), query=(), gallery=()):
    for part, names in zip(PARTS.values(), (train, query, gallery)):
        for i, name in enumerate(names): picture(root/part/name, seed=i)
    return root

@pytest.fixture
def market(tmp_path):
    train = ["0007_c1s1_000151_01.jpg", "0002_c1s1_000451_03.jpg", "0002_c2s1_000301_01.jpg"]
    query = ["0001_c1s1_001051_00.jpg", "0003_c6s3_000001_00.jpg"]
    gallery = ["0001_c2s1_000001_01.jpg", "0003_c1s1_000001_01.jpg", "0000_c3s1_000001_01.jpg",
               "-1_c3s2_000001_01.jpg", "-1_c1s1_000001_01.jpg"]
    return tree(tmp_path/"Market-1501-v15.09.15", train, query, gallery)

def load(name, root, **options):
    "Read without a check."
    return D.load_dataset(name, root, check=False, progress=False, **options)

# Readers

def test_market(market):
    data = load("market1501", market.parent)
    assert data.root == market
    assert data.train.pids.tolist() == [2, 2, 7] and data.train.camids.tolist() == [1, 2, 1]
    assert data.train.labels.tolist() == [0, 0, 1] and data.train.num_pids == 2
    # junk dropped, distractors kept, in the order of the names
    assert data.gallery.pids.tolist() == [0, 1, 3]
    assert data.gallery.pids.dtype == data.gallery.camids.dtype == np.int64
    assert load("market1501", market).train.paths == data.train.paths

def test_other_files_are_left_alone(market):
    (market/"query/Thumbs.db").write_bytes(b"x")
    (market/"query/._0001_c1s1_001051_00.jpg").write_bytes(b"x") # written by macOS
    picture(market/"query/0004_c1s1_000001_00.PNG")
    assert len(load("market1501", market).query) == 3

def test_duke_and_own_folder(tmp_path):
    names = ["0001_c2_f0046182.jpg"], ["0005_c2_f0046985.jpg"], ["0005_c5_f0051781.jpg"]
    tree(tmp_path/"DukeMTMC-reID", *names)
    assert load("dukemtmc-reid", tmp_path).query.camids.tolist() == [2]
    assert D.load_dataset("mine", tmp_path/"DukeMTMC-reID").gallery.pids.tolist() == [5]

@pytest.mark.parametrize("above", ["", "CUHK03-NP", "cuhk03-np", "cuhk03"])
@pytest.mark.parametrize("variant", ["detected", "labeled"])
def test_cuhk03_np(tmp_path, above, variant):
    tree(tmp_path/above/variant, ["0003_c1_21.png"], ["0001_c1_04.png"], ["0001_c2_09.png"])
    assert load(f"cuhk03-{variant}", tmp_path).train.pids.tolist() == [3]
    folder = tmp_path/above/variant
    assert load(f"cuhk03-{variant}", folder).root == folder

def test_pedestrians_are_drawn_once(tmp_path, monkeypatch):
    calls, write = [], D.write_pedestrians
    def draw(root):
        calls.append(root)
        return write(root, train_ids=2, test_ids=2, images=4, workers=1)
    monkeypatch.setattr(D, "write_pedestrians", draw)
    for _ in range(2): data = D.load_dataset("pedestrians", tmp_path/"people")
    assert calls == [tmp_path/"people"] and data.train.num_pids == 2
    # a folder that holds other things gets a subfolder
    assert D.load_dataset("pedestrians", tmp_path).root == tmp_path/"pedestrians"
    monkeypatch.setenv("GCUTMIX_DATA", str(tmp_path/"nothing yet"))
    assert D.load_dataset("pedestrians").root == tmp_path/"nothing yet/pedestrians"

@settings(deadline=None)
@given(st.integers(-1, 99999), st.integers(0, 99), st.text("abs0123_", max_size=12))
def test_any_name(pid, camid, rest):
    name = f"{'-1' if pid == -1 else f'{pid:04d}'}_c{camid}_{rest}.jpg"
    assert D.parse_name(f"some.folder_c9/{name}") == (pid, camid)

# The original CUHK03 release

PEOPLE = [3, 2, 1, 1, 1] # of each camera pair

def listed():
    "(identity, pair, person, number, file name); nobody has a fifth picture from a camera here."
    label = 0
    for pair, people in enumerate(PEOPLE):
        for person in range(people):
            label += 1
            for number in range(10):
                if number % 5 == 4: continue
                camera = 1 + (number > 4)
                name = f"{pair + 1}_{person + 1:03d}_{camera}_{number + 1:02d}.png"
                yield label, pair, person, number, name

def write_mat(f, variant, missing):
    "The pictures of one variant: five camera pairs of (10, people) references."
    import h5py
    pixels, tables = {}, []
    pairs = f.create_dataset(variant, (1, 5), dtype=h5py.ref_dtype)
    for pair, people in enumerate(PEOPLE):
        table = f.create_dataset(f"refs/{variant}{pair}", (10, people), dtype=h5py.ref_dtype)
        empty = f.create_dataset(f"refs/{variant}{pair}empty", data=np.zeros(2, dtype=np.uint64))
        empty.attrs["MATLAB_empty"] = np.uint8(1)
        table[:] = np.full(table.shape, empty.ref, dtype=h5py.ref_dtype)
        pairs[0, pair] = table.ref
        tables.append(table)
    for _, pair, person, number, name in listed():
        if name in missing: continue
        rng = np.random.default_rng([pair, person, number, variant == "labeled"])
        pixels[variant, name] = rng.integers(0, 256, (60 + pair, 20 + person, 3), dtype=np.uint8)
        stored = pixels[variant, name].transpose(2, 1, 0) # of H, W, 3
        tables[pair][number, person] = f.create_dataset(f"refs/{variant}{name}", data=stored).ref
    return pixels

def release(root, missing=()):
    "`cuhk-03.mat` of the true structure, and both protocol files."
    h5py = pytest.importorskip("h5py")
    savemat = pytest.importorskip("scipy.io").savemat
    root.mkdir(parents=True, exist_ok=True)
    pixels = {}
    with h5py.File(root/"cuhk-03.mat", "w") as f:
        for variant in ("detected", "labeled"): pixels |= write_mat(f, variant, missing)
    labels, _, _, numbers, names = (np.array(column) for column in zip(*listed()))
    def column(x, dtype): return np.array(x, dtype=dtype)[:, None]
    def places(mask): return column(np.flatnonzero(mask) + 1, np.uint16)
    first, tested = np.isin(numbers, (0, 5)), labels > 5
    protocol = dict(
        filelist=column(names.tolist(), object), labels=column(labels, np.float64),
        camId=column(1 + (numbers > 4), np.uint8), train_idx=places(~tested),
        query_idx=places(tested & first), gallery_idx=places(tested & ~first))
    for variant in ("detected", "labeled"):
        savemat(root/f"cuhk03_new_protocol_config_{variant}.mat", protocol)
    return pixels

@pytest.mark.parametrize("variant", ["detected", "labeled"])
@pytest.mark.parametrize("where", [".", "cuhk03_release", "cuhk03/cuhk03_release"])
def test_release(tmp_path, variant, where):
    pixels = release(tmp_path/where)
    data = load(f"cuhk03-{variant}", tmp_path)
    assert data.root == tmp_path/"cuhk03-np"/variant
    assert data.train.num_pids == 5 and len(data.train) == 5*8
    assert data.query.pids.tolist() == [6, 6, 7, 7, 8, 8]
    assert data.query.camids.tolist() == [1, 2]*3
    assert len(data.gallery) == 3*6
    first, second = data.train.paths[0], data.query.paths[1]
    assert first.name == "0001_c1_01.png" and second.name == "0006_c2_06.png"
    assert np.array_equal(np.asarray(Image.open(first)), pixels[variant, "1_001_1_01.png"])
    assert np.array_equal(np.asarray(Image.open(second)), pixels[variant, "3_001_2_06.png"])
    shutil.rmtree(tmp_path/where) if where != "." else (tmp_path/"cuhk-03.mat").unlink()
    assert len(load(f"cuhk03-{variant}", tmp_path).train) == 40, "extracted once"

def test_protocol_beside_the_release(tmp_path):
    release(tmp_path/"cuhk03_release")
    for f in (tmp_path/"cuhk03_release").glob("*config*"): shutil.move(f, tmp_path/f.name)
    assert len(load("cuhk03-labeled", tmp_path).train) == 40

def test_release_leaves_nothing_half_done(tmp_path):
    release(tmp_path, missing=["5_001_2_06.png"])
    with pytest.raises(ValueError, match="no picture 5_001_2_06.png"):
        load("cuhk03-detected", tmp_path)
    assert not (tmp_path/"cuhk03-np/detected").exists()
    assert not list((tmp_path/"cuhk03-np").iterdir())

@pytest.mark.parametrize("damage", ["text", "numbers from 0", "no labels", "empty", "swapped"])
def test_release_that_is_something_else(tmp_path, damage):
    release(tmp_path)
    mat, config = tmp_path/"cuhk-03.mat", tmp_path/"cuhk03_new_protocol_config_detected.mat"
    scipy = pytest.importorskip("scipy.io")
    protocol = {k: v for k, v in scipy.loadmat(config).items() if k[0] != "_"}
    if damage == "text": mat.write_text("not found")
    if damage == "empty": config.write_bytes(b"")
    if damage == "swapped": mat.rename(config)
    if damage == "swapped": scipy.savemat(mat, protocol)
    if damage == "no labels": del protocol["labels"]
    if damage == "numbers from 0": protocol["train_idx"] = protocol["train_idx"].astype(int) - 1
    if damage in ("no labels", "numbers from 0"): scipy.savemat(config, protocol)
    wanted = "cuhk-03.mat and .*detected.mat are not the release of CUHK03 and its protocol"
    with pytest.raises(ValueError, match=wanted): load("cuhk03-detected", tmp_path)
    assert not (tmp_path/"cuhk03-np/detected").exists()

def test_release_without_protocol(tmp_path):
    release(tmp_path)
    (tmp_path/"cuhk03_new_protocol_config_labeled.mat").unlink()
    with pytest.raises(FileNotFoundError, match="cuhk03_new_protocol_config_labeled.mat"):
        D.load_dataset("cuhk03-labeled", tmp_path)

def test_release_without_h5py(tmp_path, monkeypatch):
    release(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"needs h5py and scipy: pip install 'gcutmix\[raw\]'"):
        D.load_dataset("cuhk03-labeled", tmp_path)

# What may be wrong with a folder

def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="DukeMTMC-reID.*root=.*market1501"):
        D.load_dataset("dukemtmc-reid", tmp_path)
    with pytest.raises(FileNotFoundError, match="no data set 'markt'.*Known names"):
        D.load_dataset("markt", tmp_path/"nothing")

def test_missing_part(market):
    shutil.rmtree(market/"query")
    wanted = "no folder .*query.*bounding_box_train, query, bounding_box_test"
    with pytest.raises(FileNotFoundError, match=wanted): D.load_dataset("market1501", market)

def test_empty_split(market):
    for f in (market/"query").iterdir(): f.rename(f.with_suffix(".txt"))
    with pytest.raises(ValueError, match="query: 2 files are not read .2 .txt., 0 pictures are"):
        D.load_dataset("market1501", market)

def test_junk_alone_is_no_split(tmp_path):
    picture(tmp_path/"-1_c3s2_000001_01.jpg")
    with pytest.raises(ValueError, match="no image of a person in"): D.read_split(tmp_path)

def test_unreadable_name(market):
    picture(market/"query/IMG_0001.jpg")
    with pytest.raises(ValueError, match="IMG_0001.jpg.*0002_c1_01.jpg.*Rename"):
        D.load_dataset("market1501", market)

@pytest.mark.parametrize("name", ["0001_01.jpg", "anna_c1_01.jpg", "-2_c1_01.jpg", "c1_0001.jpg",
                                  f"{2**63}_c1_01.jpg", f"1_c{2**63}_01.jpg", f"{10**60}_c1.jpg",
                                  "0001_cx_01.jpg", "\u0661_c1_01.jpg", "1.5_c1.jpg"])
def test_names_that_say_nothing(market, name):
    picture(market/"query"/name)
    with pytest.raises(ValueError) as error: load("market1501", market)
    assert str(error.value).startswith(f"cannot read {market}/query/{name}: expected a name like")

def test_the_largest_numbers(tmp_path):
    largest = 2**63 - 1
    picture(tmp_path/f"{largest}_c{largest}.jpg")
    split = D.read_split(tmp_path)
    assert split.pids.tolist() == split.camids.tolist() == [largest]

NO_PIDS = [["anna", "ben"]*2, [1., 1., 2., 2.], [1, 1, 2**63, 2**63], [1, 1, -2, -2], [2**80]*4,
           [[1], [1], [2], [2]], [True, True, False, False], None]

@pytest.mark.parametrize("pids", NO_PIDS)
def test_ids_that_are_none(pids):
    "In samplers and losses as in readers."
    embeddings = torch.rand(4, 3)
    with pytest.raises((ValueError, TypeError)): PKSampler(pids, 2, 2)
    with pytest.raises(ValueError, match="pids: found"): batch_hard_triplet(embeddings, pids)
    with pytest.raises(ValueError, match="labels: found"):
        branch_losses(embeddings, torch.rand(4, 3), pids)

@pytest.mark.parametrize("labels", [[0, 0, 3, 3], [-1, -1, 0, 0], [0, 0, -100, -100]])
def test_labels_without_a_class(labels):
    "-100 would be left out in silence by torch; below that, a GPU stops for good."
    with pytest.raises(ValueError, match="labels"):
        branch_losses(torch.rand(4, 3), torch.rand(4, 3), torch.tensor(labels))

# What is not read is counted

def test_what_is_not_read(market, capfd):
    "One line, and no more than that; what nobody would call a picture is not in it."
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0001_c1.jpg"):
        (market/"train.txt").touch()
        (market/"query"/name).touch()
    load("market1501", market)
    assert capfd.readouterr().err == ""
    picture(market/"query/0004_c1.jpg")
    for name in ("0005_c1.heic", "notes"): (market/"query"/name).touch()
    picture(market/"query/more/deep/0006_c1.jpg")
    (market/"query/empty").mkdir()
    load("market1501", market)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"{market}/query: 3 files are not read (")
    for what in ("1 .heic", "1 without an ending", "1 in subfolders", "3 pictures are."):
        assert what in said

@pytest.mark.parametrize("where", ["{}.heic", "person/{}.jpg", "{}"])
def test_more_is_not_read_than_read(market, where):
    "A photograph that is converted from the camera's format, and a hundred that are not."
    (market/"query/person").mkdir()
    for i in range(3): (market/"query"/where.format(f"000{i}_c1")).touch()
    with pytest.raises(ValueError, match="query: 3 files are not read .*2 pictures are: expected"):
        load("market1501", market)

@pytest.mark.parametrize("part", ["train", "query"])
def test_a_name_that_is_not_utf8(market, part):
    "Found before anything else; in the end, no result could be written."
    name = os.fsdecode(b"0001_c1_M\xfcller.jpg")
    try: picture(market/PARTS[part]/name)
    except OSError: pytest.skip("this disk knows UTF-8 only")
    with pytest.raises(ValueError, match=r"'0001_c1_M.udcfcller.jpg' .* is not UTF-8.*rename"):
        load("market1501", market)

def test_a_folder_that_is_not_utf8(market, tmp_path):
    "A folder may have any name: no result holds it."
    folder = tmp_path/os.fsdecode(b"M\xfcller")
    try: market.rename(folder)
    except OSError: pytest.skip("this disk knows UTF-8 only")
    data = load("mine", folder)
    assert F.fingerprints(data)["query"]["images"] == 2

def test_a_folder_named_as_a_validation_part(market, tmp_path):
    own = market.rename(tmp_path/"market-validation")
    for root in (tmp_path, own):
        assert load("market-validation", root).train.pids.tolist() == [2, 2, 7]
    own.rename(tmp_path/"market")
    with pytest.raises(ValueError, match="no image for the gallery of market-validation"), \
         pytest.warns(UserWarning, match="if you meant 'market1501'"):
        load("market-validation", tmp_path)

def test_counts(market):
    with pytest.raises(ValueError) as error: D.load_dataset("market1501", market)
    for text in (
        "train (bounding_box_train) has 3 images of 2 identities, expected 12,936 of 751",
        "query (query) has 2 images of 2 identities, expected 3,368 of 750",
        "gallery (bounding_box_test) has 3 images of 2 identities, expected 15,913 of 750",
        "check=False"): assert text in str(error.value)

def test_right_counts(market, monkeypatch):
    counts = dict(train=(2, 3), query=(2, 2), gallery=(2, 3))
    monkeypatch.setitem(D.TABLE1, "market1501", counts)
    assert len(D.load_dataset("market1501", market).gallery) == 3

def test_paper_counts():
    def total(name): return sum(n for _, n in D.TABLE1[name].values())
    assert (total("cuhk03-labeled"), total("cuhk03-detected")) == (14096, 14097)
    assert D.TABLE1["market1501"]["gallery"][1] == 19732 - 3819

@pytest.mark.parametrize("gallery", [["0001_c1_05.jpg", "0002_c2_01.jpg"], ["0002_c2_01.jpg"]])
def test_query_without_match(tmp_path, gallery):
    tree(tmp_path, ["0009_c1_01.jpg"], ["0001_c1_01.jpg", "0002_c1_01.jpg"], gallery)
    with pytest.raises(ValueError, match="1 of 2 queries.*0001_c1_01.jpg.*check=False"):
        D.load_dataset("mine", tmp_path)
    assert len(load("mine", tmp_path).query) == 2

# Training people who are held out

def test_people_held_out_need_a_second_camera(tmp_path):
    "One of two held-out people was seen by a single camera: nobody could find that one."
    people = [f"{pid:04d}_c{camid}" for pid in range(1, 9) for camid in (1, 2)]
    train = [f"{who}_{n}.jpg" for who in people for n in (1, 2)]
    test = ["0009_c1_1.jpg"], ["0009_c2_1.jpg"]
    tree(tmp_path/"good", train, *test)
    held = D.load_dataset("good-validation", tmp_path/"good")
    assert sorted(set(held.query.pids)) == [1, 6] and len(held.query) == 4
    tree(tmp_path/"bad", [name for name in train if not name.startswith("0006_c2")], *test)
    with pytest.raises(ValueError, match="1 of 3 queries have no picture.*0006_c1_1"):
        D.load_dataset("bad-validation", tmp_path/"bad")
    assert len(D.load_dataset("bad-validation", tmp_path/"bad", check=False).query) == 3

# Fingerprints: are these still the same pictures?

OLD = ("images", "identities", "sha256")

def test_a_fingerprint_keeps_what_it_had(market):
    data = load("market1501", market)
    found = F.fingerprint(data.query)
    names = "\n".join(f"{path.name} {path.stat().st_size}" for path in data.query.paths)
    assert list(found) == [*OLD, "content"]
    assert (found["images"], found["identities"], found["sha256"]) == (2, 2, F.digest(names))
    assert provenance(data, "cpu")["data"]["query"] == found

@pytest.mark.parametrize("change", ["none", "time", "folder", "content", "name", "more"])
def test_what_a_fingerprint_sees(market, tmp_path, change):
    before = F.fingerprints(load("market1501", market))
    path = market/"query/0001_c1s1_001051_00.jpg"
    if change == "time": os.utime(path, (0, 0))
    if change == "folder": market = market.rename(tmp_path/"elsewhere")
    if change == "content": # of the same length, in the middle and nowhere else
        content = bytearray(path.read_bytes())
        content[len(content)//2] ^= 255
        path.write_bytes(content)
    if change == "name": path.rename(path.with_name("0001_c3s1_001051_00.jpg"))
    if change == "more": picture(market/"query/0007_c1.jpg")
    after = F.fingerprints(load("mine", market))
    words = {"content": "query: as many pictures and people, but not the same",
             "more": "query: 2 pictures of 2 people, now 3 pictures of 3 people"}
    words["name"] = words["content"]
    assert F.differences(before, after) == words.get(change, "")

def test_drawn_people_are_their_pixels(people, tmp_path):
    "The same people, packed by a different zlib."
    shutil.copytree(people, tmp_path/"copy")
    before = F.fingerprints(load("copy", tmp_path))
    for path in (tmp_path/"copy").rglob("*.png"): Image.open(path).save(path, compress_level=0)
    after = F.fingerprints(load("copy", tmp_path))
    assert after["train"]["sha256"] != before["train"]["sha256"]
    assert F.differences(before, after) == "" and list(after["train"]) == [*OLD, "drawn", "pixels"]
    image = Image.open(path)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(path)
    assert "not the same" in F.differences(before, F.fingerprints(load("copy", tmp_path)))

@pytest.mark.parametrize("old", [{}, dict(train=dict.fromkeys(OLD, 1)), dict(other={}),
                                 dict(images=1, identities=1, sha256="0")])
def test_fingerprints_of_different_kinds(people, old):
    assert F.differences(old, F.fingerprints(load("people", people))) is None

def test_pictures_that_are_not_there(tmp_path):
    "The sample of what cannot be read is empty: decoding says what is wrong."
    assert F.sample(tmp_path/"nobody.jpg") == (0, 0, b"") and F.sample(tmp_path)[2] == b""

# A run and its data

@pytest.fixture
def config(people, tmp_path):
    shutil.copytree(people, tmp_path/"mine")
    return make_preset("demo", "mine", root=tmp_path/"mine", out=tmp_path/"runs", p=4, epochs=1,
                       warmup=1, decay_at=(), dim=32, eval_every=0, variant="G", device="cpu")

def rename_a_person(root):
    for path in root.rglob("0003_*.png"): path.rename(path.with_name(f"0099{path.name[4:]}"))

def test_a_finished_run_and_its_data(config, tmp_path, capfd):
    first, root = fit(config, quiet=True), tmp_path/"mine"
    assert fit(config, quiet=True).metrics == first.metrics
    aside = root.rename(tmp_path/"aside")
    assert fit(config, quiet=True).metrics == first.metrics # the data are not at hand
    assert capfd.readouterr().err.count("no mine in") == 1
    aside.rename(root)
    rename_a_person(root)
    wanted = r"G-tiny-s0.json was made from other pictures .*train: as many.*Give the `root`"
    with pytest.raises(ValueError, match=wanted): fit(config, quiet=True)
    # results of earlier versions: one line, no error
    result = json.loads(first.paths.result.read_text())
    del result["seal"]
    for split in result["data"].values(): del split["drawn"], split["pixels"]
    first.paths.result.write_text(json.dumps(result))
    assert fit(config, quiet=True).metrics == first.metrics
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "G-tiny-s0.json: its pictures are not compared" in said

def test_a_run_does_not_go_on_with_other_pictures(config, tmp_path):
    fit(config, max_steps=1, quiet=True)
    for folder in PARTS.values():
        path = sorted((tmp_path/"mine"/folder).iterdir())[0]
        before = path.read_bytes()
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
        with pytest.raises(ValueError, match="made from other pictures than those of .*mine"):
            Trainer(config, quiet=True).load()
        path.write_bytes(before)
    Trainer(config, quiet=True).load()

def test_test_pictures_are_opened_before_the_training(config, tmp_path):
    "And all bad ones are named."
    bad = [sorted((tmp_path/"mine"/folder).iterdir())[1] for folder in PARTS.values()]
    for path in bad: path.write_bytes(b"")
    with pytest.raises(ValueError, match="3 pictures cannot be used") as error:
        Trainer(config, quiet=True)
    assert all(str(path) in str(error.value) for path in bad)
