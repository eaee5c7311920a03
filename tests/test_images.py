"The image cache, keyed chance, augmentation against torchvision image by image."
import errno
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from gcutmix import images as I
from gcutmix.base import cache as C, decoding
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

def kept(cache):
    "What is in a cache; a lock that nobody holds does no harm."
    return [path for path in cache.iterdir() if path.suffix != ".lock"]

def decoded_again(*args): pytest.fail("decoded again")

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "The user's cache."
    monkeypatch.setenv("GCUTMIX_CACHE", str(tmp_path/"cache"))
    return tmp_path/"cache"

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

# A picture is what a viewer shows

def pixels(mode="RGB", seed=0):
    "An image of 6x4 that is different at each pixel."
    values = np.random.default_rng(seed).permutation(24*3).reshape(6, 4, 3).astype(np.uint8)
    return Image.fromarray(3*values).convert(mode)

def shown(tmp_path, image, name="0001_c1_01.png", **options):
    image.save(tmp_path/name, **options)
    return np.asarray(decoding.open_picture(tmp_path/name))

TURNS = [None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90",
         "TRANSVERSE", "ROTATE_270"] # how a picture is stored for each Exif orientation

@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation, suffix):
    image, note, turn = pixels(), Image.Exif(), TURNS[orientation - 1]
    note[0x0112] = orientation
    stored = image.transpose(Image.Transpose[turn]) if turn else image
    options = dict(exif=note) | (dict(lossless=True) if suffix == "webp" else {})
    assert np.array_equal(shown(tmp_path, stored, f"a.{suffix}", **options), image)

def test_orientation_of_a_photograph(tmp_path):
    "JPEG: the pixels of the file, turned."
    note, image = Image.Exif(), pixels()
    note[0x0112] = 6
    upright = shown(tmp_path, image, "a.jpg", exif=note)
    assert np.array_equal(upright, np.rot90(shown(tmp_path, image, "b.jpg"), -1))

@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits(tmp_path, suffix):
    grey = np.asarray(pixels("L"))
    deep = Image.fromarray(grey.astype(np.uint16)*257)
    assert np.array_equal(shown(tmp_path, deep, f"a.{suffix}")[..., 1], grey)
    dark = Image.fromarray(grey.astype(np.uint16)) # 255 of 65,535
    assert shown(tmp_path, dark, f"a.{suffix}").max() == 1

def test_floats_and_signed_numbers(tmp_path):
    grey = np.asarray(pixels("L"))
    for values in (grey/255, grey*100. - 30, grey.astype(np.int32)*1000 - 7):
        kind = values.dtype if values.dtype.kind == "i" else np.float32
        found = shown(tmp_path, Image.fromarray(values.astype(kind)), "a.tif")[..., 0].astype(int)
        stretched = grey if values.max() <= 1 else 255*(grey/1. - grey.min())/np.ptp(grey)
        assert abs(found - stretched).max() <= 1
    with pytest.raises(ValueError, match="cannot decode .*a.tif .*NaN"):
        shown(tmp_path, Image.fromarray(np.full((4, 4), np.nan, np.float32)), "a.tif")

@pytest.mark.parametrize("photometric", [0, 1])
def test_white_is_zero(tmp_path, photometric):
    grey = np.asarray(pixels("L"))
    found = shown(tmp_path, Image.fromarray(grey.astype(np.uint16)*257), "a.tif",
                  tiffinfo={262: photometric})
    assert np.array_equal(found[..., 0], grey if photometric else 255 - grey)

@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "gif"])
def test_transparent_pixels_are_white(tmp_path, suffix):
    image = pixels("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([255, 0]), 12).reshape(6, 4)))
    options = dict(lossless=True, exact=True) if suffix == "webp" else {}
    found = shown(tmp_path, image, f"a.{suffix}", **options)
    assert (found[3:] == 255).all()
    if suffix != "gif": assert np.array_equal(found[:3], np.asarray(image)[:3, :, :3])

def test_half_transparent_and_a_transparent_colour(tmp_path):
    black = Image.new("RGBA", (2, 2), (0, 0, 0, 51))
    assert (shown(tmp_path, black) == 204).all()
    for mode, key in (("L", 7), ("RGB", (7, 7, 7)), ("1", 0)):
        image = Image.new(mode, (2, 2), key)
        assert (shown(tmp_path, image, transparency=key) == 255).all()

def test_what_was_right_stays(tmp_path):
    "Palette, one bit, CMYK: as Pillow converts them."
    for mode, suffix in (("P", "png"), ("1", "png"), ("L", "bmp"), ("CMYK", "jpg"), ("P", "gif")):
        found = shown(tmp_path, pixels(mode), f"a.{suffix}")
        assert np.array_equal(found, Image.open(tmp_path/f"a.{suffix}").convert("RGB"))

@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "jfif", "png", "bmp", "webp", "tif", "tiff",
                                    "gif", "avif", "JPG"])
def test_formats(tmp_path, suffix):
    if f".{suffix.lower()}" not in decoding.SUFFIXES: pytest.skip("Pillow was built without it")
    more = dict(save_all=True, append_images=[pixels(seed=1)]) if suffix in ("gif", "webp") else {}
    pixels().save(tmp_path/f"0001_c1.{suffix}", **more)
    [path] = read_split(tmp_path).paths
    found = np.asarray(decoding.open_picture(path)).astype(int)
    if suffix in ("png", "bmp", "tif", "tiff"): assert np.array_equal(found, pixels())
    assert found.shape == (6, 4, 3)
    if suffix == "gif": assert abs(found - np.asarray(pixels())).mean() < 20 # the first of two

def pipe(path):
    if not hasattr(os, "mkfifo"): pytest.skip("no pipes here")
    os.mkfifo(path)

@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "PDF", "JPEG2000", "SVG", "pipe", "folder"])
def test_what_is_no_picture(tmp_path, kind):
    "Whatever the name says; nothing is started, and nobody waits."
    path = tmp_path/"0001_c1_01.jpg"
    if kind == "pipe": pipe(path)
    elif kind == "folder": path.mkdir()
    elif kind == "SVG": path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    else: pixels().save(path, kind)
    with pytest.raises(ValueError, match=r"cannot decode .*0001_c1_01.jpg \(.* bytes\).*Replace"):
        decoding.open_picture(path)

def test_a_pipe_in_a_folder(split, cache):
    pipe(split.paths[0].with_name("0009_c1_01.jpg"))
    with pytest.raises(ValueError, match="0009_c1_01.jpg .0 bytes.: it is not a regular file"):
        load(read_split(split.paths[0].parent))

def test_files_that_nobody_may_read(split, cache):
    "A link into the void, like a broken picture, is named with the others."
    split.paths[2].unlink()
    split.paths[2].symlink_to("nowhere")
    split.paths[5].write_bytes(b"")
    with pytest.raises(ValueError, match="2 pictures cannot be used.*0002_c1.*0005_c1"): load(split)

def png_of(width, height):
    "A PNG that says it is that large."
    def chunk(kind, data):
        rest = kind + data
        return len(data).to_bytes(4, "big") + rest + zlib.crc32(rest).to_bytes(4, "big")
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b""))

@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size", [(8001, 8001), (13_000, 13_000), (20_000, 20_000)])
def test_too_many_pixels(tmp_path, size):
    (tmp_path/"a.png").write_bytes(png_of(*size))
    with pytest.raises(ValueError, match="cannot decode .*a.png .*pixels"):
        decoding.open_picture(tmp_path/"a.png")

# The cache

def test_cache(split, tmp_path, monkeypatch, recwarn):
    first = load(split)
    monkeypatch.setattr(decoding, "decode", decoded_again)
    again = load(split)
    assert again.equal(first) and not recwarn.list
    again.zero_() # copy on write: the file must not change
    assert load(split).equal(first)
    assert [p.parent for p in tmp_path.rglob("*.npy")] == [tmp_path/"cache"]
    # nothing is added to the pictures, which other tools read
    assert len(list((tmp_path/"set").rglob("*"))) == 1 + len(split)

@pytest.mark.parametrize("change", ["content", "time", "name", "fewer",
                                    "more", "folder", "size"])
def test_stale_cache(split, tmp_path, change):
    load(split)
    old = {p: p.read_bytes() for p in tmp_path.rglob("*.npy")}
    path, size, kept = split.paths[3], (24, 8), change in ("size", "folder")
    if change == "content": picture(path, seed=99)
    if change == "time": os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    if change == "name": path.rename(path.with_name("0003_c2_01.png"))
    if change == "fewer": path.unlink()
    if change == "more": picture(path.with_name("0009_c1_01.png"), seed=9)
    if change == "folder": shutil.copytree(tmp_path/"set", tmp_path/"copy")
    if change == "size": size = (24, 9)
    split = read_split(tmp_path/("copy" if change == "folder" else "set")/"train")
    assert load(split, size).equal(torchvisions(split.paths, size))
    # what nobody needs any more is gone, what is of a different folder or size is as it was
    assert len(list(tmp_path.rglob("*.npy"))) == 1 + kept
    assert all(p.read_bytes() == content for p, content in old.items() if p.exists())
    assert all(p.exists() == kept for p in old)

def test_a_picture_of_the_same_size_and_time(tmp_path):
    file = tmp_path/"set/0001_c1_01.bmp"
    picture(file)
    before, old = file.stat(), load(read_split(file.parent)).clone()
    picture(file, seed=1)
    os.utime(file, ns=(0, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size and file.stat().st_mtime_ns == before.st_mtime_ns
    assert not load(read_split(file.parent)).equal(old)

def test_parts_of_a_folder_do_not_drive_each_other_out(split, cache):
    half = split.where(split.pids % 2 == 0)
    for part in (split, half, split.where(split.pids % 2 == 1, "odd")): load(part)
    assert len(kept(cache)) == 3
    assert load(half).equal(load(split)[::2])

@pytest.mark.parametrize("damage", [b"", b"not numpy", None])
def test_damaged_cache(split, cache, damage):
    first = load(split).clone()
    [file] = kept(cache)
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert load(split).equal(first)

def test_any_bit_of_a_cache(split, cache):
    "One flipped bit anywhere, 200 times: noticed and repaired."
    first = load(split).clone()
    [file] = kept(cache)
    whole, shape = file.read_bytes(), tuple(first.shape)
    assert C.open_cache(file, shape).equal(first)
    places = np.random.default_rng(0).integers(0, 8*len(whole), 200)
    for place in [*places.tolist(), 0, 8*len(whole) - 1]:
        changed = bytearray(whole)
        changed[place//8] ^= 1 << place % 8
        file.write_bytes(changed)
        assert C.open_cache(file, shape) is None, f"bit {place}"
    assert load(split).equal(first) and file.read_bytes() == whole

@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 nothing", None])
def test_corrupt_image(split, cache, content):
    path = split.paths[4]
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    wanted = rf"cannot decode .*{path.name} \({path.stat().st_size} bytes\).*Replace"
    with pytest.raises(ValueError, match=wanted): load(split)
    assert not kept(cache)

def test_all_corrupt_images_at_once(split, tmp_path, cache):
    "The first ten by name, in one error, whichever split they are in."
    for i in range(9): picture(tmp_path/f"set/query/{i:04d}_c2_01.png", seed=i)
    both = [split, read_split(tmp_path/"set/query")]
    bad = [both[0].paths[2], *both[1].paths[:8]]
    for path in bad: path.write_bytes(b"")
    with pytest.raises(ValueError) as error: I.load_splits(both, (24, 8), progress=False)
    assert str(error.value).startswith("9 pictures cannot be used")
    assert all(str(path) in str(error.value) for path in bad) and not kept(cache)
    for path in both[0].paths[4:]: path.write_bytes(b"")
    with pytest.raises(ValueError, match="^14 pictures.*; and 4 more$") as error:
        I.load_splits(both, (24, 8), progress=False)
    assert str(error.value).count("cannot decode") == 10

def full_disk(*args): raise OSError(errno.ENOSPC, "No space left on device")

def test_full_disk(split, cache, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="disk full.*free some space"): load(split)
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(OSError, match=r"5,184 bytes too few.*GCUTMIX_CACHE"): load(split)
    assert not kept(cache)

def test_interrupted(split, cache, monkeypatch):
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(decoding, "decode", stop)
    with pytest.raises(KeyboardInterrupt): load(split)
    assert not kept(cache)

DIES = """
import os, sys
from gcutmix.base import decoding
from gcutmix.data import read_split
from gcutmix.images import load_images

decode = decoding.decode
def die(path, size): return os._exit(9) if "0008" in path.name else decode(path, size)
decoding.decode = die
load_images(read_split(sys.argv[1]), (24, 8), progress=False)
"""

def test_killed(split, tmp_path, cache):
    """A process killed while it writes leaves no cache that a later one would take for whole. What
    it leaves goes after a day."""
    command = [sys.executable, "-c", DIES, str(tmp_path/"set/train")]
    assert subprocess.run(command).returncode == 9
    [left] = kept(cache)
    assert left.name.startswith(".tmp-") and len(load(split)) == 9 and left.exists()
    os.utime(left, (0, 0))
    assert len(load(split, (25, 8))) == 9 and not left.exists()

SUMS = """
import sys
from gcutmix.data import read_split
from gcutmix.images import load_images

print(int(load_images(read_split(sys.argv[1]), (48, 16), progress=False).sum()))
"""

def test_two_processes_at_once(split, tmp_path, cache):
    command = [sys.executable, "-c", SUMS, str(tmp_path/"set/train")]
    pipe = dict(stdout=subprocess.PIPE, text=True)
    jobs = [subprocess.Popen(command, **pipe) for _ in range(2)]
    sums = [int(job.communicate()[0]) for job in jobs]
    assert sums == [int(load(split, (48, 16)).sum())]*2
    assert len(kept(cache)) == 1

@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "Neither is asked for, nor are the pictures in the temporary folder."
    monkeypatch.delenv("GCUTMIX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"home"))
    monkeypatch.setattr(C.tempfile, "tempdir", str(tmp_path/"temporary"))
    (tmp_path/"temporary").mkdir()
    C._say_elsewhere.cache_clear()

def test_the_users_cache(split, tmp_path, elsewhere):
    load(split)
    assert [p.parent for p in tmp_path.rglob("*.npy")] == [tmp_path/"home/gcutmix"]

def test_home_that_takes_no_files(split, tmp_path, monkeypatch, elsewhere, capfd):
    "The temporary folder, with one line; what is already in the home is used all the same."
    writable, home = C._writable, tmp_path/"home"
    monkeypatch.setattr(C, "_writable", lambda d: home not in d.parents and writable(d))
    images = load(split)
    load(split, (20, 8))
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "Set GCUTMIX_CACHE" in said
    file = next(tmp_path.rglob("*-24x8-*.npy"))
    assert file.parent == C._temporary()
    (home/"gcutmix").mkdir(parents=True)
    file.rename(home/"gcutmix"/file.name)
    monkeypatch.setattr(decoding, "decode", decoded_again)
    assert load(split).equal(images)

def test_no_home(split, tmp_path, monkeypatch, elsewhere):
    def homeless(): raise RuntimeError("Could not determine home directory.")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(C.Path, "home", homeless)
    load(split)
    assert [p.parent for p in tmp_path.rglob("*.npy")] == [C._temporary()]

def test_nothing_takes_files(split, monkeypatch):
    monkeypatch.setattr(C, "_writable", lambda folder: False)
    with pytest.raises(OSError, match="set GCUTMIX_CACHE to a folder that takes files"): load(split)

def test_the_temporary_folder_keeps_nothing_for_long(split, tmp_path, monkeypatch, elsewhere):
    monkeypatch.setattr(C.tempfile, "tempdir", str(tmp_path))
    load(split)
    [file] = tmp_path.rglob("*.npy")
    assert file.parent == C._temporary()
    load(split, (20, 8))
    assert file.exists()
    os.utime(file, (0, 0))
    load(split, (16, 8))
    assert not file.exists() and len(list(file.parent.iterdir())) == 2

def test_a_cache_among_the_pictures(split, monkeypatch):
    monkeypatch.setenv("GCUTMIX_CACHE", str(split.paths[0].parent/"cache"))
    with pytest.raises(ValueError, match="lies among the pictures"): load(split)

def test_unwritable_folder(tmp_path):
    (tmp_path/"file").write_text("")
    assert not C._writable(tmp_path/"file/folder") and C._writable(tmp_path/"folder")

def test_cache_folder(split, tmp_path):
    load(split, cache=tmp_path/"mine/deep")
    assert [p.parent for p in tmp_path.rglob("*.npy")] == [tmp_path/"mine/deep"]

def test_progress_bar(split, capsys, monkeypatch):
    "In a terminal, unless nothing is decoded or nobody wants it; and in nothing else."
    I.load_images(split, (16, 8))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    I.load_images(split, (24, 8))
    assert "9 of 9" in capsys.readouterr().err
    I.load_images(split, (24, 8))
    I.load_images(split, (20, 8), progress=False)
    assert capsys.readouterr().err == ""

def test_to_device(monkeypatch):
    images = torch.zeros(10, 3, 8, 4, dtype=torch.uint8)
    assert I.to_device(images, "cpu") is images
    monkeypatch.setattr(I, "_free_memory", lambda device: 4*images.nbytes)
    assert I.to_device(images, "meta").device.type == "meta"
    assert I.to_device(images, "meta", share=.24) is images

@pytest.mark.cuda
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
