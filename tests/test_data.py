"""Readers on small generated trees, the image cache, augmentation against torchvision image by image."""
import errno, os, shutil, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from gcutmix import data as D

PARTS = dict(train="bounding_box_train", query="query", gallery="bounding_box_test")

def picture(path, size=(40, 20), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)

def tree(root, train=(), query=(), gallery=()):
    for part, names in zip(PARTS.values(), (train, query, gallery)):
        for i, name in enumerate(names): picture(root/part/name, seed=i)
    return root

@pytest.fixture
def market(tmp_path):
    return tree(tmp_path/"Market-1501-v15.09.15",
                train=["0007_c1s1_000151_01.jpg", "0002_c1s1_000451_03.jpg", "0002_c2s1_000301_01.jpg"],
                query=["0001_c1s1_001051_00.jpg", "0003_c6s3_000001_00.jpg"],
                gallery=["0001_c2s1_000001_01.jpg", "0003_c1s1_000001_01.jpg", "0000_c3s1_000001_01.jpg",
                         "-1_c3s2_000001_01.jpg", "-1_c1s1_000001_01.jpg"])

# Readers

def test_market(market):
    data = D.load_dataset("market1501", market.parent, check=False)
    assert data.root == market
    assert data.train.pids.tolist() == [2, 2, 7] and data.train.camids.tolist() == [1, 2, 1]
    assert data.train.labels.tolist() == [0, 0, 1] and data.train.num_pids == 2
    assert data.gallery.pids.tolist() == [0, 1, 3], "junk dropped, distractors kept, in the order of the names"
    assert data.gallery.pids.dtype == data.gallery.camids.dtype == np.int64
    assert D.load_dataset("market1501", market, check=False).train.paths == data.train.paths

def test_other_files_are_left_alone(market):
    (market/"query/Thumbs.db").write_bytes(b"x")
    (market/"query/._0001_c1s1_001051_00.jpg").write_bytes(b"x") # written by macOS
    picture(market/"query/0004_c1s1_000001_00.PNG")
    assert len(D.load_dataset("market1501", market, check=False).query) == 3

def test_duke_and_own_folder(tmp_path):
    tree(tmp_path/"DukeMTMC-reID", ["0001_c2_f0046182.jpg"], ["0005_c2_f0046985.jpg"], ["0005_c5_f0051781.jpg"])
    assert D.load_dataset("dukemtmc-reid", tmp_path, check=False).query.camids.tolist() == [2]
    assert D.load_dataset("mine", tmp_path/"DukeMTMC-reID").gallery.pids.tolist() == [5]

@pytest.mark.parametrize("above", ["", "CUHK03-NP", "cuhk03-np", "cuhk03"])
@pytest.mark.parametrize("variant", ["detected", "labeled"])
def test_cuhk03_np(tmp_path, above, variant):
    tree(tmp_path/above/variant, ["0003_c1_21.png"], ["0001_c1_04.png"], ["0001_c2_09.png"])
    assert D.load_dataset(f"cuhk03-{variant}", tmp_path, check=False).train.pids.tolist() == [3]
    assert D.load_dataset(f"cuhk03-{variant}", tmp_path/above/variant, check=False).root == tmp_path/above/variant

def test_pedestrians_are_drawn_once(tmp_path, monkeypatch):
    import gcutmix.pedestrians as P
    calls, write = [], P.write_pedestrians
    monkeypatch.setattr(P, "write_pedestrians", lambda root: calls.append(root) or write(root, train_ids=2, test_ids=2, images=4, workers=1))
    for _ in range(2): data = D.load_dataset("pedestrians", tmp_path/"people")
    assert calls == [tmp_path/"people"] and data.train.num_pids == 2
    assert D.load_dataset("pedestrians", tmp_path).root == tmp_path/"pedestrians", "a folder that holds other things gets a subfolder"
    monkeypatch.setenv("GCUTMIX_DATA", str(tmp_path/"nothing yet"))
    assert D.load_dataset("pedestrians").root == tmp_path/"nothing yet/pedestrians"

@settings(deadline=None)
@given(st.integers(-1, 99999), st.integers(0, 99), st.text("abs0123_", max_size=12))
def test_any_name(pid, camid, rest):
    name = f"{'-1' if pid == -1 else f'{pid:04d}'}_c{camid}_{rest}.jpg"
    assert D.parse_name(f"some.folder_c9/{name}") == (pid, camid)

# The original CUHK03 release

def release(root, missing=()):
    "`cuhk-03.mat` of the true structure: five camera pairs of (10, people) references, and both protocol files."
    h5py, savemat = pytest.importorskip("h5py"), pytest.importorskip("scipy.io").savemat
    root.mkdir(parents=True, exist_ok=True)
    pixels, people = {}, [3, 2, 1, 1, 1]
    with h5py.File(root/"cuhk-03.mat", "w") as f:
        for variant in ("detected", "labeled"):
            pairs = f.create_dataset(variant, (1, 5), dtype=h5py.ref_dtype)
            for pair in range(5):
                table = f.create_dataset(f"refs/{variant}{pair}", (10, people[pair]), dtype=h5py.ref_dtype)
                pairs[0, pair] = table.ref
                for person in range(people[pair]):
                    for number in range(10):
                        name = f"{pair+1}_{person+1:03d}_{1 + (number > 4)}_{number+1:02d}.png"
                        there = (name not in missing) and number % 5 != 4 # nobody has a fifth picture here
                        rng = np.random.default_rng([pair, person, number, variant == "labeled"])
                        pixels[variant, name] = rng.integers(0, 256, (60 + pair, 20 + person, 3), dtype=np.uint8) # H, W, 3
                        value = pixels[variant, name].transpose(2, 1, 0) if there else np.zeros(2, dtype=np.uint64)
                        cell = f.create_dataset(f"refs/{variant}{name}", data=value)
                        if not there: cell.attrs["MATLAB_empty"] = np.uint8(1)
                        table[number, person] = cell.ref
    everybody = [(pair, person) for pair in range(5) for person in range(people[pair])]
    listed = [(label, f"{pair+1}_{person+1:03d}_{1 + (n > 4)}_{n+1:02d}.png") for label, (pair, person) in enumerate(everybody, 1)
              for n in range(10) if n % 5 != 4]
    labels, names = np.array([l for l, _ in listed]), [n for _, n in listed]
    first = np.array([n.split("_")[3] in ("01.png", "06.png") for n in names])
    column = lambda x, dtype: np.array(x, dtype=dtype)[:, None]
    split = lambda mask: column(np.flatnonzero(mask) + 1, np.uint16)
    for variant in ("detected", "labeled"):
        savemat(root/f"cuhk03_new_protocol_config_{variant}.mat", dict(
            filelist=column(names, object), labels=column(labels, np.float64), camId=column([int(n[6]) for n in names], np.uint8),
            train_idx=split(labels <= 5), query_idx=split((labels > 5) & first), gallery_idx=split((labels > 5) & ~first)))
    return pixels

@pytest.mark.parametrize("variant", ["detected", "labeled"])
@pytest.mark.parametrize("where", [".", "cuhk03_release", "cuhk03/cuhk03_release"])
def test_release(tmp_path, variant, where):
    pixels = release(tmp_path/where)
    data = D.load_dataset(f"cuhk03-{variant}", tmp_path, check=False, progress=False)
    assert data.root == tmp_path/"cuhk03-np"/variant
    assert data.train.num_pids == 5 and len(data.train) == 5*8
    assert data.query.pids.tolist() == [6, 6, 7, 7, 8, 8] and data.query.camids.tolist() == [1, 2]*3
    assert len(data.gallery) == 3*6
    assert data.train.paths[0].name == "0001_c1_01.png" and data.query.paths[1].name == "0006_c2_06.png"
    assert np.array_equal(np.asarray(Image.open(data.train.paths[0])), pixels[variant, "1_001_1_01.png"])
    assert np.array_equal(np.asarray(Image.open(data.query.paths[1])), pixels[variant, "3_001_2_06.png"])
    shutil.rmtree(tmp_path/where) if where != "." else (tmp_path/"cuhk-03.mat").unlink()
    assert len(D.load_dataset(f"cuhk03-{variant}", tmp_path, check=False).train) == 40, "extracted once"

def test_protocol_beside_the_release(tmp_path):
    release(tmp_path/"cuhk03_release")
    for f in (tmp_path/"cuhk03_release").glob("*config*"): shutil.move(f, tmp_path/f.name)
    assert len(D.load_dataset("cuhk03-labeled", tmp_path, check=False, progress=False).train) == 40

def test_release_leaves_nothing_half_done(tmp_path):
    release(tmp_path, missing=["5_001_2_06.png"])
    with pytest.raises(ValueError, match="no picture 5_001_2_06.png"): D.load_dataset("cuhk03-detected", tmp_path, check=False, progress=False)
    assert not (tmp_path/"cuhk03-np/detected").exists() and not list((tmp_path/"cuhk03-np").iterdir())

def test_release_without_protocol(tmp_path):
    release(tmp_path)
    (tmp_path/"cuhk03_new_protocol_config_labeled.mat").unlink()
    with pytest.raises(FileNotFoundError, match="cuhk03_new_protocol_config_labeled.mat"): D.load_dataset("cuhk03-labeled", tmp_path)

def test_release_without_h5py(tmp_path, monkeypatch):
    release(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py scipy"): D.load_dataset("cuhk03-labeled", tmp_path)

# What may be wrong with a folder

def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="DukeMTMC-reID.*root=.*market1501"): D.load_dataset("dukemtmc-reid", tmp_path)
    with pytest.raises(FileNotFoundError, match="no data set 'markt'.*Known names"): D.load_dataset("markt", tmp_path/"nothing")

def test_missing_part(market):
    shutil.rmtree(market/"query")
    with pytest.raises(FileNotFoundError, match="no folder .*query.*bounding_box_train, query, bounding_box_test"): D.load_dataset("market1501", market)

def test_empty_split(market):
    for f in (market/"query").iterdir(): f.rename(f.with_suffix(".txt"))
    with pytest.raises(ValueError, match="no image of a person in .*query"): D.load_dataset("market1501", market)

def test_unreadable_name(market):
    picture(market/"query/IMG_0001.jpg")
    with pytest.raises(ValueError, match="IMG_0001.jpg.*0002_c1_01.jpg.*Rename"): D.load_dataset("market1501", market)

def test_counts(market):
    with pytest.raises(ValueError) as e: D.load_dataset("market1501", market)
    for text in ("train (bounding_box_train) has 3 images of 2 identities, expected 12,936 of 751",
                 "query (query) has 2 images of 2 identities, expected 3,368 of 750",
                 "gallery (bounding_box_test) has 3 images of 2 identities, expected 15,913 of 750", "check=False"): assert text in str(e.value)

def test_right_counts(market, monkeypatch):
    monkeypatch.setitem(D.TABLE1, "market1501", dict(train=(2, 3), query=(2, 2), gallery=(2, 3)))
    assert len(D.load_dataset("market1501", market).gallery) == 3

def test_paper_counts():
    total = lambda name: sum(n for _, n in D.TABLE1[name].values())
    assert (total("cuhk03-labeled"), total("cuhk03-detected")) == (14096, 14097)
    assert D.TABLE1["market1501"]["gallery"][1] == 19732 - 3819

@pytest.mark.parametrize("gallery", [["0001_c1_05.jpg", "0002_c2_01.jpg"], ["0002_c2_01.jpg"]])
def test_query_without_match(tmp_path, gallery):
    tree(tmp_path, ["0009_c1_01.jpg"], ["0001_c1_01.jpg", "0002_c1_01.jpg"], gallery)
    with pytest.raises(ValueError, match="1 of 2 queries.*0001_c1_01.jpg.*check=False"): D.load_dataset("mine", tmp_path)
    assert len(D.load_dataset("mine", tmp_path, check=False).query) == 2

# Images

@pytest.fixture
def split(tmp_path):
    names = [f"{i:04d}_c1_01.{'png' if i % 2 else 'jpg'}" for i in range(9)]
    for i, name in enumerate(names): picture(tmp_path/"set/train"/name, size=(30 + i, 10 + 2*i), seed=i)
    return D.read_split(tmp_path/"set/train")

@pytest.mark.parametrize("size", [(384, 128), (24, 8), (31, 17)])
def test_images_are_torchvisions(split, size):
    images = D.load_images(split, size, progress=False)
    expected = torch.stack([F.pil_to_tensor(v2.Resize(size)(Image.open(p).convert("RGB"))) for p in split.paths])
    assert images.dtype == torch.uint8 and images.equal(expected)

def test_grey_and_palette_images(tmp_path):
    for name, mode in [("0001_c1_01.png", "L"), ("0002_c1_01.png", "P"), ("0003_c1_01.png", "RGBA")]:
        (tmp_path/"a").mkdir(exist_ok=True)
        Image.new("RGB", (8, 16), (200, 200, 200)).convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path/"a"/name)
    assert (D.load_images(D.read_split(tmp_path/"a"), (16, 8)) == 200).all()

def test_more_than_one_piece(tmp_path):
    picture(tmp_path/"set/0001_c1_0000.png")
    for i in range(1, 1100): os.link(tmp_path/"set/0001_c1_0000.png", tmp_path/f"set/0001_c1_{i:04d}.png")
    images = D.load_images(D.read_split(tmp_path/"set"), (8, 4))
    assert images.shape == (1100, 3, 8, 4) and (images == images[0]).all()

def test_cache(split, tmp_path, monkeypatch, recwarn):
    first = D.load_images(split, (24, 8))
    monkeypatch.setattr(D, "_decode", lambda *a: pytest.fail("decoded again"))
    again = D.load_images(split, (24, 8))
    assert again.equal(first) and not recwarn.list
    again.zero_() # copy on write: the file must not change
    assert D.load_images(split, (24, 8)).equal(first)
    assert [p.parent.name for p in tmp_path.rglob("*.npy")] == [".gcutmix"]

@pytest.mark.parametrize("change", ["content", "time", "name", "fewer", "size"])
def test_stale_cache(split, tmp_path, change):
    D.load_images(split, (24, 8))
    old = {p: p.read_bytes() for p in tmp_path.rglob("*.npy")}
    path, size = split.paths[3], (24, 8)
    if change == "content": picture(path, seed=99)
    if change == "time": os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    if change == "name": path.rename(path.with_name("0003_c2_01.png"))
    if change == "fewer": path.unlink()
    if change == "size": size = (24, 9)
    split = D.read_split(tmp_path/"set/train")
    images = D.load_images(split, size)
    assert images.equal(torch.stack([F.pil_to_tensor(v2.Resize(size)(Image.open(p).convert("RGB"))) for p in split.paths]))
    assert len(list(tmp_path.rglob("*.npy"))) == 2 and all(p.read_bytes() == b for p, b in old.items())

@pytest.mark.parametrize("damage", [b"", b"not numpy", None])
def test_damaged_cache(split, tmp_path, damage):
    first = D.load_images(split, (24, 8)).clone()
    [file] = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert D.load_images(split, (24, 8)).equal(first)

@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 nothing", None])
def test_corrupt_image(split, tmp_path, content):
    path = split.paths[4]
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(ValueError, match=rf"cannot decode .*{path.name} \({path.stat().st_size} bytes\).*Replace"): D.load_images(split, (24, 8))
    assert not list((tmp_path/"set/.gcutmix").iterdir())

def full_disk(*args): raise OSError(errno.ENOSPC, "No space left on device")

def test_full_disk(split, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="disk full.*free some space"): D.load_images(split, (24, 8))
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(OSError, match=r"5,184 bytes too few.*cache="): D.load_images(split, (24, 8))
    assert not list((tmp_path/"set/.gcutmix").iterdir())

def test_interrupted(split, tmp_path, monkeypatch):
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(D, "_decode", stop)
    with pytest.raises(KeyboardInterrupt): D.load_images(split, (24, 8))
    assert not list((tmp_path/"set/.gcutmix").iterdir())

def test_killed(split, tmp_path):
    "A process killed while it writes leaves no cache that a later one would take for whole."
    code = ("import sys, os, gcutmix.data as D; from pathlib import Path; decode = D._decode\n"
            "def die(path, size): return os._exit(9) if '0008' in path.name else decode(path, size)\n"
            "D._decode = die; D.load_images(D.read_split(Path(sys.argv[1])), (24, 8), progress=False)")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path/"set/train")]).returncode == 9
    assert not list((tmp_path/"set/.gcutmix").glob("*.npy"))
    assert len(D.load_images(split, (24, 8))) == 9

def test_two_processes_at_once(split, tmp_path):
    code = "import sys, gcutmix.data as D; print(int(D.load_images(D.read_split(sys.argv[1]), (48, 16), progress=False).sum()))"
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path/"set/train")], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [int(job.communicate()[0]) for job in jobs]
    assert sums == [int(D.load_images(split, (48, 16)).sum())]*2
    assert len(list((tmp_path/"set/.gcutmix").iterdir())) == 1

def test_read_only_data(split, tmp_path, monkeypatch):
    "Written to the user's cache; a cache that is beside the data is used all the same."
    writable = D._writable
    monkeypatch.setattr(D, "_writable", lambda d: tmp_path/"set" not in [d, *d.parents] and writable(d))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"home"))
    images = D.load_images(split, (24, 8))
    [file] = tmp_path.rglob("*.npy")
    assert file.parent == tmp_path/"home/gcutmix"
    (tmp_path/"set/.gcutmix").mkdir()
    file.rename(tmp_path/"set/.gcutmix"/file.name)
    monkeypatch.setattr(D, "_decode", lambda *a: pytest.fail("decoded again"))
    assert D.load_images(split, (24, 8)).equal(images)

def test_unwritable_folder(tmp_path):
    (tmp_path/"file").write_text("")
    assert not D._writable(tmp_path/"file/folder") and D._writable(tmp_path/"folder")

def test_cache_folder(split, tmp_path):
    D.load_images(split, (24, 8), cache=tmp_path/"mine/deep")
    assert [p.parent for p in tmp_path.rglob("*.npy")] == [tmp_path/"mine/deep"]

def test_progress_bar(split, capfd):
    D.load_images(split, (24, 8))
    assert "9/9" in capfd.readouterr().err
    D.load_images(split, (24, 8)); D.load_images(split, (20, 8), progress=False)
    assert capfd.readouterr().err == ""

def test_to_device(monkeypatch):
    images = torch.zeros(10, 3, 8, 4, dtype=torch.uint8)
    assert D.to_device(images, "cpu") is images
    monkeypatch.setattr(D, "_free_memory", lambda device: 4*images.nbytes)
    assert D.to_device(images, "meta").device.type == "meta" and D.to_device(images, "meta", share=.24) is images

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda():
    images = torch.randint(0, 256, (16, 3, 96, 32), dtype=torch.uint8, generator=D.keyed_generator(0))
    gpu = D.to_device(images, "cuda")
    assert gpu.is_cuda and D.to_device(images, "cuda", share=0) is images
    for f in (D.random_flip, lambda x, g: D.cutout(x, g, size=16), D.random_erasing): assert f(gpu, D.keyed_generator(1)).cpu().equal(f(images, D.keyed_generator(1)))
    torch.testing.assert_close(D.augment(gpu, D.keyed_generator(2), cutout_size=16).cpu(), D.augment(images, D.keyed_generator(2), cutout_size=16))

# Chance

@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 10**6)]*4), min_size=2, max_size=20, unique=True))
def test_keys(keys):
    draws = {k: torch.rand(4, generator=D.keyed_generator(*k)) for k in keys}
    for k in reversed(keys): assert torch.rand(4, generator=D.keyed_generator(*k)).equal(draws[k])
    assert len({tuple(d.tolist()) for d in draws.values()}) == len(keys)

def test_keys_leave_the_global_generator_alone():
    torch.manual_seed(0); expected = torch.rand(3)
    torch.manual_seed(0); torch.rand(5, generator=D.keyed_generator(0))
    assert torch.rand(3).equal(expected)

def test_draws_never_change():
    "A run that is resumed with a later version must draw the same."
    assert (1000*torch.rand(4, generator=D.keyed_generator(1, 2, 3, 4))).int().tolist() == [14, 66, 137, 943]

def test_streams_of_one_run_look_independent():
    draws = torch.stack([torch.rand(64, generator=D.keyed_generator(0, e, s)) for e in range(20) for s in range(20)]) - .5
    assert abs(draws.mean()) < .01
    correlation = (draws @ draws.T)/(64/12)
    assert correlation.fill_diagonal_(0).abs().max() < .75 # 79,800 pairs of 64 draws: six standard deviations

def test_negative_key():
    with pytest.raises(ValueError): D.keyed_generator(-1)

# Augmentation, against torchvision image by image with the same decisions

images_of = lambda n, h, w: torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8, generator=D.keyed_generator(9))

@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(17, 60), st.integers(17, 40), st.sampled_from([0., .3, .5, 1.]), st.integers(1, 17))
def test_augment(seed, n, h, w, p, size):
    images, before = images_of(n, h, w), images_of(n, h, w)
    out = D.augment(images, D.keyed_generator(seed), flip=p, cutout_p=p, cutout_size=size)
    g = D.keyed_generator(seed)
    flip = torch.rand(n, generator=g) < p
    chance, y, x = torch.rand(3, n, generator=g)
    for i in range(n):
        one = F.horizontal_flip(images[i]) if flip[i] else images[i]
        one = F.normalize(F.to_dtype(one, torch.float32, scale=True), [.485, .456, .406], [.229, .224, .225])
        if chance[i] < p: one = F.erase(one, int(y[i]*(h-size+1)), int(x[i]*(w-size+1)), size, size, torch.zeros(1))
        torch.testing.assert_close(out[i], one, atol=1e-5, rtol=1e-5)
    assert images.equal(before), "the data set itself must not change"

@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(4, 80), st.integers(4, 40))
def test_cutout_is_wholly_inside(seed, h, w):
    size = min(h, w)//2
    hole = D.cutout(torch.ones(50, 3, h, w), D.keyed_generator(seed), p=1., size=size) == 0
    assert (hole.sum((1, 2, 3)) == 3*size*size).all()
    rows, columns = hole[:, 0].any(2).sum(1), hole[:, 0].any(1).sum(1)
    assert (rows == size).all() and (columns == size).all()

def test_cutout_reaches_every_place():
    hole = D.cutout(torch.ones(4000, 1, 6, 5), D.keyed_generator(0), p=1., size=3) == 0
    corner = hole[:, 0].flatten(1).float().argmax(1)
    count = torch.bincount(corner, minlength=30).view(6, 5)[:4, :3]
    assert count.sum() == 4000 and (count - 4000/12).abs().max() < 80

def test_cutout_that_fills_the_image_or_does_not_fit():
    assert not D.cutout(torch.ones(3, 3, 8, 8), D.keyed_generator(0), p=1., size=8).any()
    with pytest.raises(ValueError, match="64x64 cutout does not fit into 96x32"): D.augment(images_of(2, 96, 32), D.keyed_generator(0))
    assert D.augment(images_of(2, 96, 32), D.keyed_generator(0), cutout_p=0.).shape == (2, 3, 96, 32)

def test_draws_do_not_depend_on_probabilities():
    "What comes after augmentation in a step must not move when p is changed."
    for p in (0., .5, 1.):
        g = D.keyed_generator(0)
        D.augment(images_of(4, 20, 20), g, flip=p, cutout_p=p, cutout_size=4)
        last = torch.rand(1, generator=g)
        assert p == 0. or last.equal(before)
        before = last

@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(3, 80), st.integers(3, 60))
def test_erasing_is_one_rectangle(seed, h, w):
    hole = (D.random_erasing(torch.ones(30, 1, h, w), D.keyed_generator(seed), p=1.) == 0)[:, 0]
    rows, columns = hole.any(2).sum(1), hole.any(1).sum(1)
    assert (hole.sum((1, 2)) == rows*columns).all()
    assert (rows < h).all() and (columns < w).all()

def test_erasing_is_torchvisions():
    "The same distribution of heights and widths: compare deciles."
    torch.manual_seed(0)
    theirs = torch.stack([torch.tensor(v2.RandomErasing(p=1.).make_params([torch.ones(3, 96, 32)])[k]) for _ in range(4000) for k in "hw"]).view(-1, 2)
    hole = (D.random_erasing(torch.ones(4000, 1, 96, 32), D.keyed_generator(0), p=1.) == 0)[:, 0]
    ours = torch.stack([hole.any(2).sum(1), hole.any(1).sum(1)], 1)
    q = torch.linspace(.1, .9, 9)
    assert (ours.float().quantile(q, 0) - theirs.float().quantile(q, 0)).abs().max() <= 1.5
    assert .48 < (D.random_erasing(torch.ones(4000, 1, 96, 32), D.keyed_generator(1)) == 0).flatten(1).any(1).float().mean() < .52

# Real images, where they are

real = os.environ.get("GCUTMIX_DATA", "data")
@pytest.mark.skipif(not (Path(real)/"cuhk03-p1/detected/bounding_box_train").is_dir(),
                    reason="needs cuhk03-p1/detected under $GCUTMIX_DATA")
def test_real_images(tmp_path):
    data = D.load_dataset("cuhk03-p1-detected", real)
    D.check_matches(data.query, data.gallery)
    images = D.load_images(data.query, (192, 64), cache=tmp_path, progress=False)
    assert images.shape == (804, 3, 192, 64)
    assert images[5].equal(F.pil_to_tensor(v2.Resize((192, 64))(Image.open(data.query.paths[5]))))
