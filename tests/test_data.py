"Readers on small generated trees, the original CUHK03 release, what may be wrong with a folder."
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from gcutmix import data as D

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
