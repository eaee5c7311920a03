"The image cache, keyed chance, augmentation against torchvision image by image."
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from gcutmix import images as I
from gcutmix.base import cache as C
from gcutmix.data import check_matches, load_dataset, read_split

def picture(path, size=(40, 20), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)

def torchvisions(paths, size):
    resize = v2.Resize(size)
    return torch.stack([F.pil_to_tensor(resize(Image.open(p).convert("RGB"))) for p in paths])

@pytest.fixture
def split(tmp_path):
    names = [f"{i:04d}_c1_01.{'png' if i % 2 else 'jpg'}" for i in range(9)]
    for i, name in enumerate(names):
        picture(tmp_path/"set/train"/name, size=(30 + i, 10 + 2*i), seed=i)
    return read_split(tmp_path/"set/train")

def load(split, size=(24, 8), **options):
    return I.load_images(split, size, **{"progress": False, **options})

def decoded_again(*args): pytest.fail("decoded again")

# Images

@pytest.mark.parametrize("size", [(384, 128), (24, 8), (31, 17)])
def test_images_are_torchvisions(split, size):
    images = load(split, size)
    assert images.dtype == torch.uint8 and images.equal(torchvisions(split.paths, size))

@pytest.mark.parametrize("size", [(24,), (0, 8), (24, 8, 3), (24, -8)])
def test_size_that_is_none(split, size):
    with pytest.raises(ValueError, match="expected height and width in pixels"): load(split, size)

def test_grey_and_palette_images(tmp_path):
    modes = {"0001_c1_01.png": "L", "0002_c1_01.png": "P", "0003_c1_01.png": "RGBA"}
    (tmp_path/"a").mkdir()
    for name, mode in modes.items():
        grey = Image.new("RGB", (8, 16), (200, 200, 200))
        grey.convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path/"a"/name)
    assert (load(read_split(tmp_path/"a"), (16, 8)) == 200).all()

def test_more_than_one_piece(tmp_path):
    first = tmp_path/"set/0001_c1_0000.png"
    picture(first)
    for i in range(1, 1100): os.link(first, tmp_path/f"set/0001_c1_{i:04d}.png")
    images = load(read_split(tmp_path/"set"), (8, 4))
    assert images.shape == (1100, 3, 8, 4) and (images == images[0]).all()

# The cache

def test_cache(split, tmp_path, monkeypatch, recwarn):
    first = load(split)
    monkeypatch.setattr(C, "decode", decoded_again)
    again = load(split)
    assert again.equal(first) and not recwarn.list
    again.zero_() # copy on write: the file must not change
    assert load(split).equal(first)
    assert [p.parent.name for p in tmp_path.rglob("*.npy")] == [".gcutmix"]

@pytest.mark.parametrize("change", ["content", "time", "name", "fewer", "size"])
def test_stale_cache(split, tmp_path, change):
    load(split)
    old = {p: p.read_bytes() for p in tmp_path.rglob("*.npy")}
    path, size = split.paths[3], (24, 8)
    if change == "content": picture(path, seed=99)
    if change == "time": os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    if change == "name": path.rename(path.with_name("0003_c2_01.png"))
    if change == "fewer": path.unlink()
    if change == "size": size = (24, 9)
    split = read_split(tmp_path/"set/train")
    assert load(split, size).equal(torchvisions(split.paths, size))
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    assert all(p.read_bytes() == content for p, content in old.items())

@pytest.mark.parametrize("damage", [b"", b"not numpy", None])
def test_damaged_cache(split, tmp_path, damage):
    first = load(split).clone()
    [file] = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert load(split).equal(first)

@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 nothing", None])
def test_corrupt_image(split, tmp_path, content):
    path = split.paths[4]
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    wanted = rf"cannot decode .*{path.name} \({path.stat().st_size} bytes\).*Replace"
    with pytest.raises(ValueError, match=wanted): load(split)
    assert not list((tmp_path/"set/.gcutmix").iterdir())

def full_disk(*args): raise OSError(errno.ENOSPC, "No space left on device")

def test_full_disk(split, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="disk full.*free some space"): load(split)
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(OSError, match=r"5,184 bytes too few.*cache="): load(split)
    assert not list((tmp_path/"set/.gcutmix").iterdir())

def test_interrupted(split, tmp_path, monkeypatch):
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(C, "decode", stop)
    with pytest.raises(KeyboardInterrupt): load(split)
    assert not list((tmp_path/"set/.gcutmix").iterdir())

DIES = """
import os, sys
from gcutmix.base import cache
from gcutmix.data import read_split
from gcutmix.images import load_images

decode = cache.decode
def die(path, size): return os._exit(9) if "0008" in path.name else decode(path, size)
cache.decode = die
load_images(read_split(sys.argv[1]), (24, 8), progress=False)
"""

def test_killed(split, tmp_path):
    "A process killed while it writes leaves no cache that a later one would take for whole."
    command = [sys.executable, "-c", DIES, str(tmp_path/"set/train")]
    assert subprocess.run(command).returncode == 9
    assert not list((tmp_path/"set/.gcutmix").glob("*.npy"))
    assert len(load(split)) == 9

SUMS = """
import sys
from gcutmix.data import read_split
from gcutmix.images import load_images

print(int(load_images(read_split(sys.argv[1]), (48, 16), progress=False).sum()))
"""

def test_two_processes_at_once(split, tmp_path):
    command = [sys.executable, "-c", SUMS, str(tmp_path/"set/train")]
    pipe = dict(stdout=subprocess.PIPE, text=True)
    jobs = [subprocess.Popen(command, **pipe) for _ in range(2)]
    sums = [int(job.communicate()[0]) for job in jobs]
    assert sums == [int(load(split, (48, 16)).sum())]*2
    assert len(list((tmp_path/"set/.gcutmix").iterdir())) == 1

def test_read_only_data(split, tmp_path, monkeypatch):
    "Written to the user's cache; a cache that is beside the data is used all the same."
    writable, home = C._writable, tmp_path/"set"
    monkeypatch.setattr(C, "_writable", lambda d: home not in [d, *d.parents] and writable(d))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"home"))
    images = load(split)
    [file] = tmp_path.rglob("*.npy")
    assert file.parent == tmp_path/"home/gcutmix"
    (home/".gcutmix").mkdir()
    file.rename(home/".gcutmix"/file.name)
    monkeypatch.setattr(C, "decode", decoded_again)
    assert load(split).equal(images)

def test_unwritable_folder(tmp_path):
    (tmp_path/"file").write_text("")
    assert not C._writable(tmp_path/"file/folder") and C._writable(tmp_path/"folder")

def test_cache_folder(split, tmp_path):
    load(split, cache=tmp_path/"mine/deep")
    assert [p.parent for p in tmp_path.rglob("*.npy")] == [tmp_path/"mine/deep"]

def test_progress_bar(split, capfd):
    I.load_images(split, (24, 8))
    assert "9/9" in capfd.readouterr().err
    I.load_images(split, (24, 8))
    I.load_images(split, (20, 8), progress=False)
    assert capfd.readouterr().err == ""

def test_to_device(monkeypatch):
    images = torch.zeros(10, 3, 8, 4, dtype=torch.uint8)
    assert I.to_device(images, "cpu") is images
    monkeypatch.setattr(I, "_free_memory", lambda device: 4*images.nbytes)
    assert I.to_device(images, "meta").device.type == "meta"
    assert I.to_device(images, "meta", share=.24) is images

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda():
    key, images = I.keyed_generator, images_of(16, 96, 32)
    gpu = I.to_device(images, "cuda")
    assert gpu.is_cuda and I.to_device(images, "cuda", share=0) is images
    def cutout(x, generator): return I.cutout(x, generator, size=16)
    for f in (I.random_flip, cutout, I.random_erasing):
        assert f(gpu, key(1)).cpu().equal(f(images, key(1)))
    for p in (0., .5):
        there, here = (I.augment(x, key(2), cutout_size=16, erasing_p=p) for x in (gpu, images))
        torch.testing.assert_close(there.cpu(), here)

# Chance

keys_of_a_run = st.tuples(*[st.integers(0, 10**6)]*4)

@settings(deadline=None)
@given(st.lists(keys_of_a_run, min_size=2, max_size=20, unique=True))
def test_keys(keys):
    draws = {k: torch.rand(4, generator=I.keyed_generator(*k)) for k in keys}
    for k in reversed(keys): assert torch.rand(4, generator=I.keyed_generator(*k)).equal(draws[k])
    assert len({tuple(d.tolist()) for d in draws.values()}) == len(keys)

def test_keys_leave_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(5, generator=I.keyed_generator(0))
    assert torch.rand(3).equal(expected)

def test_draws_never_change():
    "A run that is resumed with a later version must draw the same."
    draws = 1000*torch.rand(4, generator=I.keyed_generator(1, 2, 3, 4))
    assert draws.int().tolist() == [14, 66, 137, 943]

def test_streams_of_one_run_look_independent():
    steps = [(0, *divmod(n, 20)) for n in range(400)] # seed, epoch, step
    draws = torch.stack([torch.rand(64, generator=I.keyed_generator(*key)) for key in steps]) - .5
    assert abs(draws.mean()) < .01
    correlation = (draws @ draws.T)/(64/12)
    # 79,800 pairs of 64 draws: six standard deviations
    assert correlation.fill_diagonal_(0).abs().max() < .75

def test_negative_key():
    with pytest.raises(ValueError): I.keyed_generator(-1)

# Augmentation, against torchvision image by image with the same decisions

def images_of(n, h, w):
    generator = I.keyed_generator(9)
    return torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8, generator=generator)

seeds = st.integers(0, 2**32)

@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 9), st.integers(17, 60), st.integers(17, 40),
       st.sampled_from([0., .3, .5, 1.]), st.integers(1, 17))
def test_augment(seed, n, h, w, p, size):
    images, before = images_of(n, h, w), images_of(n, h, w)
    out = I.augment(images, I.keyed_generator(seed), flip=p, cutout_p=p, cutout_size=size)
    g = I.keyed_generator(seed)
    flip = torch.rand(n, generator=g) < p
    chance, y, x = torch.rand(3, n, generator=g)
    for i in range(n):
        one = F.horizontal_flip(images[i]) if flip[i] else images[i]
        one = F.to_dtype(one, torch.float32, scale=True)
        one = F.normalize(one, [.485, .456, .406], [.229, .224, .225])
        top, left = int(y[i]*(h - size + 1)), int(x[i]*(w - size + 1))
        if chance[i] < p: one = F.erase(one, top, left, size, size, torch.zeros(1))
        torch.testing.assert_close(out[i], one, atol=1e-5, rtol=1e-5)
    assert images.equal(before), "the data set itself must not change"

@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 9))
def test_without_erasing_nothing_changes(seed, n):
    "With 0, the result and all later draws are those of the three steps; on, it comes last."
    images = images_of(n, 40, 20)
    def steps(generator):
        flipped = I.random_flip(images, generator)
        return I.cutout(I.normalize(flipped), generator, size=8)
    plain, off, on, last = (I.keyed_generator(seed) for _ in range(4))
    assert I.augment(images, off, cutout_size=8, erasing_p=0.).equal(steps(plain))
    assert off.get_state().equal(plain.get_state())
    out = I.augment(images, on, cutout_size=8, erasing_p=.5)
    assert out.equal(I.random_erasing(steps(last), last, .5))

@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(4, 80), st.integers(4, 40))
def test_cutout_is_wholly_inside(seed, h, w):
    size = min(h, w)//2
    hole = I.cutout(torch.ones(50, 3, h, w), I.keyed_generator(seed), p=1., size=size) == 0
    assert (hole.sum((1, 2, 3)) == 3*size*size).all()
    rows, columns = hole[:, 0].any(2).sum(1), hole[:, 0].any(1).sum(1)
    assert (rows == size).all() and (columns == size).all()

def test_cutout_reaches_every_place():
    hole = I.cutout(torch.ones(4000, 1, 6, 5), I.keyed_generator(0), p=1., size=3) == 0
    corner = hole[:, 0].flatten(1).float().argmax(1)
    count = torch.bincount(corner, minlength=30).view(6, 5)[:4, :3]
    assert count.sum() == 4000 and (count - 4000/12).abs().max() < 80

def test_cutout_that_fills_the_image_or_does_not_fit():
    key, images = I.keyed_generator(0), images_of(2, 96, 32)
    assert not I.cutout(torch.ones(3, 3, 8, 8), key, p=1., size=8).any()
    with pytest.raises(ValueError, match="64x64 cutout does not fit into 96x32"):
        I.augment(images, key)
    assert I.augment(images, key, cutout_p=0.).shape == (2, 3, 96, 32)

def test_draws_do_not_depend_on_probabilities():
    "What comes after augmentation in a step must not move when p is changed."
    after = []
    for p in (0., .5, 1.):
        g = I.keyed_generator(0)
        I.augment(images_of(4, 20, 20), g, flip=p, cutout_p=p, cutout_size=4)
        after.append(torch.rand(1, generator=g).item())
    assert len(set(after)) == 1

@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(3, 80), st.integers(3, 60))
def test_erasing_is_one_rectangle(seed, h, w):
    erased = I.random_erasing(torch.ones(30, 1, h, w), I.keyed_generator(seed), p=1.)
    hole = (erased == 0)[:, 0]
    rows, columns = hole.any(2).sum(1), hole.any(1).sum(1)
    assert (hole.sum((1, 2)) == rows*columns).all()
    assert (rows < h).all() and (columns < w).all()

def test_erasing_is_torchvisions():
    "The same distribution of heights and widths: compare deciles."
    torch.manual_seed(0)
    draw = v2.RandomErasing(p=1.).make_params
    params = [draw([torch.ones(3, 96, 32)]) for _ in range(8000)]
    theirs = torch.tensor([[param["h"], param["w"]] for param in params])
    white = torch.ones(4000, 1, 96, 32)
    hole = (I.random_erasing(white, I.keyed_generator(0), p=1.) == 0)[:, 0]
    ours = torch.stack([hole.any(2).sum(1), hole.any(1).sum(1)], 1)
    q = torch.linspace(.1, .9, 9)
    deciles = [sides.float().quantile(q, 0) for sides in (ours, theirs)]
    assert (deciles[0] - deciles[1]).abs().max() <= 1.5
    half = (I.random_erasing(white, I.keyed_generator(1)) == 0).flatten(1).any(1)
    assert .48 < half.float().mean() < .52

# Real images, if they are there

REAL = os.environ.get("GCUTMIX_DATA", "data")

@pytest.mark.skipif(not (Path(REAL)/"cuhk03-p1/detected/bounding_box_train").is_dir(),
                    reason="needs cuhk03-p1/detected under $GCUTMIX_DATA")
def test_real_images(tmp_path):
    data = load_dataset("cuhk03-p1-detected", REAL)
    check_matches(data.query, data.gallery)
    images = load(data.query, (192, 64), cache=tmp_path)
    assert images.shape == (804, 3, 192, 64)
    assert images[5:6].equal(torchvisions(data.query.paths[5:6], (192, 64)))
