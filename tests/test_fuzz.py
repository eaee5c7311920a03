"""Data sets as strangers have them: random files of all kinds, whole and damaged. Each tree is read
right, pixel by pixel, or refused with an error that names a file of it; nothing else may happen.

`python tests/test_fuzz.py 1000 0` tries a thousand trees, the first one with number 0, and prints
how often what was tried and what came of it; `1 NUMBER` repeats one."""
import functools
import io
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
import zlib
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, features

from conftest import posix

TREES = 1500 # in `make test-slow`
SIZE = 24, 12
WANTED = ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "AVIF"]
Image.init()
PICTURE = re.compile(r"\.(jpe?g|jfif|png|bmp|webp|tiff?|gif|avif)", re.I)
FOLDERS = ["bounding_box_train", "query", "bounding_box_test"]
DEEP = "I;16", "I;16B", "I", "F"
LIMIT = 64_000_000 # pixels


# What a viewer shows, by Pillow and numpy alone


def shallow(image):
    "Eight bits of a deep image: a viewer's 65535 is white, and the 1 of floats."
    return np.asarray(image, float)*255/(1 if image.mode == "F" else 65535)


def shown(path):
    "uint8 (H,W,3), or None if Pillow cannot read it."
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=WANTED) as image:
                if image.width*image.height > LIMIT: return None
                image.load()
                image = ImageOps.exif_transpose(image)
            if image.mode in DEEP:
                image = Image.fromarray(shallow(image).round().clip(0, 255).astype("uint8"))
            if image.has_transparency_data:
                colours = np.asarray(image.convert("RGBA"), float)
                share = colours[..., 3:]/255
                mixed = colours[..., :3]*share + 255*(1 - share)
                image = Image.fromarray(mixed.round().astype("uint8"))
            image = image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR)
            return np.asarray(image)
    except Exception: return None # whatever Pillow raises
    finally: ImageFile.LOAD_TRUNCATED_IMAGES = before


# What stands in a folder. Each function writes one thing and says what should come of which
# file: "read", "left" (out), "error", or "either" of them.


def pixels(r, h, w, *channels):
    "Large patches, so that a turned or clipped picture looks different."
    rng = np.random.default_rng(r.getrandbits(32))
    return rng.integers(0, 256, (h, w, *channels), dtype=np.uint8)//64*85


def picture(r):
    "An image in any mode."
    h, w = r.randint(1, 40), r.randint(1, 20)
    mode = r.choice(["1", "L", "LA", "P", "P+", "RGB", "RGB", "RGB", "RGBA", "CMYK", "YCbCr",
                     "I;16", "F", "constant"])
    if mode == "I;16": return Image.fromarray(pixels(r, h, w).astype(np.uint16)*257)
    if mode == "F": return Image.fromarray(pixels(r, h, w).astype(np.float32)/255)
    if mode == "constant": return Image.new("L", (w, h), r.randrange(256))
    image = Image.fromarray(pixels(r, h, w, 4), "RGBA") if mode in ("RGBA", "LA", "P+") else (
        Image.fromarray(pixels(r, h, w, 3)))
    if mode == "P+":
        image = image.convert("RGB").quantize(8)
        image.info["transparency"] = 0
        return image
    return image.convert(mode)


KINDS = {"JPEG": ("L", "RGB", "CMYK"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
         "BMP": ("1", "L", "P", "RGB"), "GIF": ("L", "P", "RGB"), "WEBP": ("RGB", "RGBA"),
         "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"),
         "AVIF": ("RGB", "RGBA"), "MPO": ("RGB",)}
if not features.check("avif"): KINDS.pop("AVIF")
SUFFIXES = dict(JPEG="jpg jpeg jfif JPG", PNG="png PNG", BMP="bmp", GIF="gif", WEBP="webp",
                TIFF="tif tiff", AVIF="avif", MPO="jpg")


def encoded(r):
    "(bytes of a picture, a fitting suffix)"
    image, kind = picture(r), r.choice([*KINDS])
    if image.mode not in KINDS[kind]:
        image = image.convert("RGB") if image.mode not in DEEP else Image.fromarray(
            shallow(image).round().astype("uint8")).convert("RGB")
    how = {}
    if kind in ("JPEG", "PNG", "WEBP", "TIFF") and r.random() < .4:
        exif = Image.Exif()
        exif[274] = r.randint(0, 9) # 0 and 9 are none of the eight
        how["exif"] = exif
    if kind in ("GIF", "MPO") or (kind in ("WEBP", "PNG", "TIFF") and r.random() < .1):
        how |= dict(save_all=True, append_images=[image.copy() for _ in range(r.randint(0, 2))])
    if kind in ("WEBP", "JPEG", "AVIF"): how["quality"] = r.choice([30, 95])
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue(), r.choice(SUFFIXES[kind].split())


def named(r, pid, suffix):
    "A file name that says who is seen, in one of the spellings."
    rest = r.choice(["", "_1", "s1_000151_01", " copy (2)", "_ä😀", ".", "xx"])
    return f"{pid:0{r.choice([1, 4])}d}_c{r.randint(1, 6)}{rest}_{r.randrange(10**6)}.{suffix}"


def good(r, folder, pid):
    content, suffix = encoded(r)
    file = folder/named(r, pid, r.choice([suffix, suffix, suffix, "jpg"]))
    file.write_bytes(content)
    return [(file, "read")]


def wide(r, folder, pid):
    "Numbers that are neither two bytes nor shares: whatever white is, brighter stays brighter."
    values = pixels(r, r.randint(1, 40), r.randint(1, 20)).astype(float)
    values = r.choice([values, values*0])*r.choice([1, 1000, -3]) + r.choice([-9, 70_000])
    image = Image.fromarray(values.astype(r.choice([np.float32, np.int32])))
    file = folder/named(r, pid, "tif")
    image.save(file)
    return [(file, "read")]


def other_folder(r, folder, pid):
    (file, want), = good(r, folder, pid)
    place = folder.parent/"elsewhere"
    place.mkdir(exist_ok=True)
    file.rename(place/file.name)
    file.symlink_to(r.choice([place, Path("..")/"elsewhere"])/file.name)
    return [(file, want)]


def junk(r, folder, pid):
    file = folder/f"-1_c{r.randint(1, 6)}_{r.randrange(10**6)}.png"
    file.write_bytes(encoded(r)[0])
    return [(file, "left")]


def damaged(r, folder, pid):
    "A few bits, or the end."
    content, suffix = encoded(r)
    content = bytearray(content)
    if r.random() < .5: del content[r.randrange(len(content)):]
    else:
        for _ in range(r.randint(1, 9)): content[r.randrange(len(content))] ^= 1 << r.randrange(8)
    file = folder/named(r, pid, suffix)
    file.write_bytes(content)
    return [(file, "read" if shown(file) is not None else "error")]


def chunk(kind, content):
    "Of a PNG file."
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


@functools.cache
def bomb(width, height, rows):
    "A PNG file of some kB that holds millions of black pixels, or says so."
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    black = zlib.compress(bytes(rows*(1 + -(-width//8))))
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", black) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def no_picture(r, folder, pid):
    "What is in files whose names promise a picture."
    large = r.choice([bomb(13_000, 13_000, 13_000), bomb(10_000, 7_000, 7_000),
                      bomb(2**31 - 1, 2**31 - 1, 0)])
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))
    hidden = large[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)) + text
    other = io.BytesIO()
    picture(r).convert("RGB").save(other, r.choice(["PPM", "TGA", "ICO", "EPS", "JPEG2000", "PDF"]))
    content = r.choice([b"", b"\0"*r.randrange(99), b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\nquit\n",
                        b"version https://git-lfs.github.com/spec/v1\n", r.randbytes(99), large,
                        hidden, other.getvalue()])
    file = folder/named(r, pid, r.choice(["jpg", "png", "tif", "gif", "webp"]))
    file.write_bytes(content)
    return [(file, "error")]


def no_file(r, folder, pid):
    "What is no file, and has a picture's name."
    file = folder/named(r, pid, "jpg")
    kind = r.choice(["pipe", "folder", "nowhere", "circle", "to a folder", "to a device"])
    if kind == "pipe": os.mkfifo(file)
    if kind == "folder": file.mkdir()
    if kind == "nowhere": file.symlink_to("nothing.jpg")
    if kind == "circle": file.symlink_to(file.name)
    if kind == "to a folder": file.symlink_to("..")
    if kind == "to a device": file.symlink_to(r.choice(["/dev/zero", "/dev/null", "/dev/tty"]))
    return [(file, "either" if "folder" in kind else "error")]


def no_name(r, folder, pid):
    "A picture whose name does not say who it is, or says what no program can hold."
    content, suffix = encoded(r)
    name = r.choice(["photo", "0001", "0001_1_2", f"{2**63}_c1", f"1_c{2**70}", "c1_0001", "_c1",
                     "-5_c1", "²_c1", "١_c2", "1_c", "1__c1", " 1_c1", "0x1_c1", "1e3_c1"])
    file = folder/f"{name}.{suffix}"
    file.write_bytes(content)
    return [(file, "error")]


def strange_name(r, folder, pid):
    "A name that not every program can write down."
    content, suffix = encoded(r)
    rest = r.choice([b"\xff\xfe", b"\n1", b"\t", b"\x1b[31m", b"'\"", b"$(x)", b"x"*200, b"%s{0}"])
    file = folder/os.fsdecode(f"{pid}_c1_{r.randrange(10**6)}".encode() + rest + b".")
    file = Path(f"{file}{suffix}")
    file.write_bytes(content)
    return [(file, "either" if b"\xff" in rest else "read")]


def other_file(r, folder, pid):
    "What lies around in folders."
    name = r.choice(["notes.txt", "Thumbs.db", ".DS_Store", "._0001_c1_1.jpg", "0001_c1_1.svg",
                     "0001_c1.heic", "labels.csv", "0001_c1_1.jpg.part", "0001_c1", "a.zip"])
    file = folder/name
    file.write_bytes(r.randbytes(30))
    return [(file, "left")]


def twice(r, folder, pid):
    "The same person, camera and number, as two files."
    (file, _), = good(r, folder, pid)
    again = file.with_name(f"{file.stem}b{file.suffix}")
    again.write_bytes(file.read_bytes())
    return [(file, "read"), (again, "read")]


WAYS = [good]*6 + [other_folder, junk, damaged, no_picture, no_file, no_name, strange_name,
                   other_file, twice, wide]


def make_tree(r, root):
    "Path -> (kind, what should come of it), of everything in the three folders."
    kinds, found = r.sample([good, *WAYS[6:]], r.randint(1, 4)), {}
    for part in FOLDERS:
        folder = root/part
        folder.mkdir(parents=True)
        people = [1, 2] if part == FOLDERS[0] else [11, 12]
        for pid in people: # whoever is tested is in the gallery, too, seen by a different camera
            file = folder/f"{pid:04d}_c{8 if part == 'query' else 9}_00.png"
            Image.fromarray(pixels(r, 9, 5, 3)).save(file)
            found[file] = "good", "read"
        for _ in range(r.randint(0, 4)):
            way = r.choice(kinds) if r.random() < .4 else good
            # a query's person is in the gallery, by camera 9, which no random picture has
            for path, want in way(r, folder, r.choice(people)): found[path] = way.__name__, want
    return found


# What comes of it


def said(path, text):
    "Whether an error names a file, in one of the ways to write its name."
    name = path.name
    return any(way in text for way in (name, repr(name)[1:-1], ascii(name)[1:-1]))


def most_are_left(found):
    "The folders in which more is left out than read: that is an error of its own."
    counts = {root: Counter() for root in {path.parent for path in found}}
    for path, (kind, want) in found.items():
        left = kind == "other_file" and path.name[0] != "." and path.name != "Thumbs.db"
        counts[path.parent][want if kind != "other_file" else f"left {left}"] += 1
    return [root for root, n in counts.items()
            if n["left True"] + n["either"] > n["read"] + n["left"] + n["error"]]


def check_error(error, found):
    "What a tree was refused for."
    text, wrong = str(error), [(path, *what) for path, what in found.items()
                               if what[1] in ("error", "either")]
    assert isinstance(error, (ValueError, OSError)), repr(error)
    assert len(text) < 6000 and "Traceback" not in text
    told = [kind for path, kind, _ in wrong if said(path, text)]
    if told: return f"refused: {told[0]}"
    assert most_are_left(found) and "not read" in text, f"names no file that is wrong: {text}"
    return "refused: most files are no pictures"


def is_as_bright(path, seen):
    "Whether grey values (3,H,W) are those of a deep image, up to what black and white are."
    with Image.open(path) as image:
        wanted = np.asarray(image.convert("F").resize(SIZE[::-1], Image.Resampling.BILINEAR))
    if np.ptp(wanted) < 1e-3*max(1, abs(wanted.max())): return np.ptp(seen) <= 1
    return np.corrcoef(wanted.ravel(), seen[0].ravel())[0, 1] > .999 and np.ptp(seen) > 99


def check_pixels(data, images, found):
    "Every picture that should be read is there, once, and looks as Pillow says."
    expected = {path for path, (_, want) in found.items() if want == "read"}
    either = {path for path, (_, want) in found.items() if want == "either"}
    seen = [path for part in (data.train, data.query, data.gallery) for path in part.paths]
    assert len(seen) == len(set(seen)), "twice"
    assert expected <= set(seen), f"not read: {expected - set(seen)}"
    assert set(seen) <= expected | either, f"read: {set(seen) - expected - either}"
    assert not [path for path, (_, want) in found.items() if want == "error"], "nothing was said"
    for part, loaded in images.items():
        split = getattr(data, part)
        assert len(split) == len(loaded)
        for path, pid, camid, image in zip(split.paths, split.pids, split.camids, loaded):
            assert re.match(rf"0*{pid}_c{camid}(\D|$)", path.name), path
            kind, _ = found[path]
            away = np.abs(image.permute(1, 2, 0).numpy().astype(int) - shown(path))
            with Image.open(path) as file: deep = file.mode in DEEP
            if kind == "wide":
                assert is_as_bright(path, image.numpy()), f"{path}: not as bright"
                continue
            # transparency is rounded, and what a broken file says of a deep range is not defined
            assert away.max() <= 2 or (deep and kind == "damaged"), f"{path}: off by {away.max()}"
    return "right"


def read_tree(root, found):
    "Read it as a training would, twice; then with one picture in the place of a different one."
    from gcutmix.base.files import fingerprint
    from gcutmix.data import load_dataset
    from gcutmix.images import load_images
    try:
        data = load_dataset("mine", root)
        splits = dict(train=data.train, query=data.query, gallery=data.gallery)
        images = {name: load_images(split, SIZE, progress=False) for name, split in splits.items()}
        for split in splits.values(): fingerprint(split)
    except Exception as error: return check_error(error, found)
    outcome = check_pixels(data, images, found)
    again = {name: load_images(split, SIZE, progress=False) for name, split in splits.items()}
    assert all(again[name].equal(images[name]) for name in images)
    first = data.train.paths[0]
    other = 255 - np.asarray(Image.open(first).convert("RGB"))
    Image.fromarray(other).save(first, "PNG")
    check_pixels(data, {"train": load_images(data.train, SIZE, progress=False)}, found)
    return outcome


def main(count, start):
    "Try trees by their numbers; print the counts. The first that goes wrong ends it."
    tried, came = Counter(), Counter()
    for number in range(start, start + count):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["GCUTMIX_CACHE"] = f"{folder}/cache"
            found = make_tree(random.Random(number), Path(folder)/"mine")
            print(f"tree {number}", file=sys.stderr, flush=True) # the last one, if it hangs
            lines = io.StringIO()
            try:
                with redirect_stderr(lines): came[read_tree(Path(folder)/"mine", found)] += 1
            except BaseException:
                traceback.print_exc()
                for path, what in found.items(): print(ascii(str(path)), *what, file=sys.stderr)
                sys.exit(f"tree {number} went wrong")
        tried.update(f"{kind}, {want}" for kind, want in found.values())
    print(f"{count:,} trees with {tried.total():,} entries")
    for title, counts in (("tried", tried), ("came of it", came)):
        print(f"{title}: " + "; ".join(f"{n:,} {what}" for what, n in counts.most_common()))


def fuzz(count, start, seconds):
    "In a process of its own, where a crash or a hang ends nothing else."
    line = [sys.executable, __file__, str(count), str(start)]
    try: done = subprocess.run(line, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error: pytest.fail(f"hangs: {error.stderr[-99:]}")
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    return done.stdout


@posix
def test_strangers_trees():
    assert "20 trees" in fuzz(20, 10_000, 300)


@posix
@pytest.mark.slow
def test_many_strangers_trees():
    out = fuzz(TREES, 0, 3000)
    assert all(f" {way.__name__}," in out for way in WAYS) and " right" in out


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
