"""Stand-ins of full size: folders and files with the counts and names of CUHK03, Market-1501 and
DukeMTMC-reID, drawn, so that the whole path can be walked without the data.

usage: standin.py FOLDER    (four data sets, and CUHK03 as its MATLAB file)

Market's gallery holds 2,798 distractors, called 0000, which count, and 3,819 cuttings that show
nobody, called -1, which do not. Duke's distractors are people of their own: 408 of its 1,110."""
import sys
from collections import namedtuple
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from gcutmix.base.files import FOLDERS, complete
from gcutmix.base.progress import Progress
from gcutmix.data import TABLE1
from gcutmix.pedestrians import draw, scene


Row = namedtuple("Row", "folder pid camid number") # number: of this person in this camera

def spread(folder, pids, images, cameras, first=1):
    "`Row`s of so many images, dealt out evenly."
    for i in range(images):
        turn, place = divmod(i, len(pids))
        number, camera = divmod(turn, cameras)
        yield Row(folder, pids[place], camera + 1, number + first)


Layout = namedtuple("Layout", "place cameras name size nobody junk")
_CUHK03 = 2, "{pid:04d}_c{camid}_{number:02d}.png", (128, 48), 0, 0
LAYOUTS = {
    "cuhk03-detected": Layout("cuhk03-np/detected", *_CUHK03),
    "cuhk03-labeled": Layout("cuhk03-np/labeled", *_CUHK03),
    "market1501": Layout("Market-1501-v15.09.15", 6,
                         "{pid:04d}_c{camid}s1_{number:06d}_00.jpg", (128, 64), 2798, 3819),
    "dukemtmc-reid": Layout("DukeMTMC-reID", 8,
                            "{pid:04d}_c{camid}_f{number:07d}.jpg", (128, 64), 0, 0)}


def rows_of(
    name,        # a data set of `LAYOUTS`
    counts=None, # split -> (people, images); None: those of `TABLE1`
):               # list of `Row`
    "Every picture of a stand-in."
    layout, counts = LAYOUTS[name], counts or TABLE1[name]
    trained, tested = counts["train"][0], counts["gallery"][0]
    train, test = range(1, trained + 1), range(trained + 1, trained + tested + 1)
    images, cameras = {split: n for split, (_, n) in counts.items()}, layout.cameras
    asked, gallery = test[:counts["query"][0]], FOLDERS["gallery"]
    return list(chain(
        spread(FOLDERS["train"], train, images["train"], cameras),
        spread(FOLDERS["query"], asked, images["query"], cameras),
        spread(gallery, test, images["gallery"] - layout.nobody, cameras, first=2),
        spread(gallery, [0], layout.nobody, cameras),
        spread(gallery, [-1], layout.junk, cameras)))


@lru_cache(None)
def _drawing(pid, camid, size): return np.asarray(draw(*scene(0, pid, camid, 1), size), np.int16)

def photograph(row, size):
    "uint8 (H,W,3)"
    pid = row.pid if row.pid > 0 else 9000 + row.number%50 # somebody
    drawing = _drawing(pid, 2 - row.camid%2, size)
    chance = np.random.default_rng((row.pid + 1, row.camid, row.number))
    noise = chance.integers(-9, 10, drawing.shape, np.int16)
    return (drawing + noise).clip(0, 255).astype(np.uint8)


def write_standin(
    root,          # a folder
    name,          # a data set of `LAYOUTS`
    counts=None,   # see `rows_of`
    progress=True, # show a bar
):                 # Path of the three folders
    "Draw a stand-in, in the place below `root` where the real one would be."
    layout, rows = LAYOUTS[name], rows_of(name, counts)
    folder = Path(root)/layout.place
    with complete(folder) as new, Progress(len(rows), name, quiet=not progress) as bar:
        for part in FOLDERS.values(): (new/part).mkdir(parents=True)
        for row in rows:
            file = new/row.folder/layout.name.format(**row._asdict())
            Image.fromarray(photograph(row, layout.size)).save(file)
            bar.update()
    return folder


PAIRS = 843, 440, 77, 58, 49 # people of each pair of cameras, 1,467 in all

def place_of(pid):
    "(pair, person) from 0 of identity 1, 2, ..."
    ends = np.cumsum(PAIRS)
    pair = int(np.searchsorted(ends, pid))
    return pair, pid - 1 - int(ends[pair] - PAIRS[pair])

def column_of(row): return 5*(row.camid - 1) + row.number - 1

def listed_name(row):
    "What the protocol calls a picture."
    pair, person = place_of(row.pid)
    return f"{pair + 1}_{person + 1:03d}_{row.camid}_{column_of(row) + 1:02d}.png"


def _write_pixels(file, variant, rows, size, bar):
    "One variant of `cuhk-03.mat`: MATLAB stores the last index first, and empty cells as (0,0)."
    import h5py
    pairs, tables = file.create_dataset(variant, (1, 5), dtype=h5py.ref_dtype), []
    empty = file.create_dataset(f"refs/{variant}-empty", data=np.zeros(2, np.uint64))
    for people in PAIRS:
        table = np.full((10, people), empty.ref, dtype=h5py.ref_dtype)
        tables.append(table)
    for row in rows:
        pixels = photograph(row, size).transpose(2, 1, 0)
        pair, person = place_of(row.pid)
        stored = file.create_dataset(f"refs/{variant}-{listed_name(row)}", data=pixels)
        tables[pair][column_of(row), person] = stored.ref
        bar.update()
    for i, table in enumerate(tables):
        pairs[0, i] = file.create_dataset(f"refs/{variant}-{i}", data=table,
                                          dtype=h5py.ref_dtype).ref

def _protocol(rows):
    "The content of a protocol file; its places count from 1."
    def column(values, kind): return np.array(values, dtype=kind)[:, None]
    found = dict(filelist=column([listed_name(row) for row in rows], object),
                 labels=column([row.pid for row in rows], np.float64),
                 camId=column([row.camid for row in rows], np.uint8))
    for split, folder in FOLDERS.items():
        places = [i for i, row in enumerate(rows, 1) if row.folder == folder]
        found[f"{split}_idx"] = column(places, np.uint16)
    return found


def write_release(
    root,          # a new folder
    counts=None,   # see `rows_of`
    size=(64, 24), # of a picture (H, W)
    progress=True, # show a bar
):                 # Path of cuhk-03.mat
    """CUHK03 as it was released: five camera pairs, each a table of ten pictures per person, five
    from each camera; and both protocol files."""
    import h5py
    from scipy.io import savemat
    variants = {name: rows_of(f"cuhk03-{name}", counts) for name in ("detected", "labeled")}
    total = sum(map(len, variants.values()))
    with complete(Path(root)) as new, Progress(total, "cuhk-03.mat", quiet=not progress) as bar:
        new.mkdir(parents=True, exist_ok=True)
        with h5py.File(new/"cuhk-03.mat", "w") as file:
            for name, rows in variants.items(): _write_pixels(file, name, rows, size, bar)
        for name, rows in variants.items():
            savemat(new/f"cuhk03_new_protocol_config_{name}.mat", _protocol(rows))
    return Path(root)/"cuhk-03.mat"


if __name__ == "__main__":
    for name in LAYOUTS: print(write_standin(sys.argv[1], name))
    print(write_release(Path(sys.argv[1])/"release"))
