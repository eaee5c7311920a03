"The path at full size: stand-ins with the counts and names of the four data sets of Table 1."
import shutil

import numpy as np
import pytest

import standin
from gcutmix.data import TABLE1, load_dataset
from gcutmix.doctor import gcutmix_doctor
from gcutmix.images import load_images

SMALL = dict(train=(10, 60), query=(6, 12), gallery=(6, 40))


def counts(data): return {name: len(getattr(data, name)) for name in ("train", "query", "gallery")}


def test_every_count_is_table_1s():
    for name, layout in standin.LAYOUTS.items():
        rows = standin.rows_of(name)
        assert len(rows) == len(set(rows)) == layout.junk + sum(n for _, n in TABLE1[name].values())
    assert len(standin.rows_of("market1501")) == 12_936 + 3_368 + 19_732
    assert {standin.column_of(row) for row in standin.rows_of("cuhk03-detected")} == {*range(10)}


def test_a_small_one_is_read(tmp_path, monkeypatch):
    few = standin.LAYOUTS["market1501"]._replace(nobody=4, junk=3)
    monkeypatch.setitem(standin.LAYOUTS, "market1501", few)
    for name in ("market1501", "cuhk03-detected"):
        standin.write_standin(tmp_path, name, SMALL, progress=False)
        data = load_dataset(name, tmp_path, check=False)
        assert counts(data) == {"train": 60, "query": 12, "gallery": 40}
    with pytest.raises(ValueError, match="expected 12,936 of 751"):
        load_dataset("market1501", tmp_path)


def test_a_small_release_is_read(tmp_path):
    pytest.importorskip("h5py")
    standin.write_release(tmp_path/"release", SMALL, progress=False)
    data = load_dataset("cuhk03-labeled", tmp_path, check=False, progress=False)
    assert counts(data) == {"train": 60, "query": 12, "gallery": 40}
    row = next(r for r in standin.rows_of("cuhk03-labeled", SMALL) if r.folder == "query")
    first = load_images(data.query, (64, 24), progress=False)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(first, standin.photograph(row, (64, 24)))


@pytest.mark.slow
def test_the_full_size_is_read_and_counted(tmp_path, capsys):
    pytest.importorskip("h5py")
    for name in standin.LAYOUTS:
        standin.write_standin(tmp_path, name, progress=False)
        data = load_dataset(name, tmp_path) # its counts are checked
        assert counts(data) == {split: n for split, (_, n) in TABLE1[name].items()}
    capsys.readouterr()
    gcutmix_doctor(root=str(tmp_path))
    said = capsys.readouterr().out
    for count in ("12,936", "16,522", "7,365", "7,368"): assert count in said, said
    standin.write_release(tmp_path/"release", progress=False)
    for variant in ("detected", "labeled"):
        shutil.rmtree(tmp_path/"cuhk03-np"/variant)
        data = load_dataset(f"cuhk03-{variant}", tmp_path/"release", progress=False)
        assert counts(data)["train"] == TABLE1[f"cuhk03-{variant}"]["train"][1]
