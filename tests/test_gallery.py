"Anybody's pictures: vectors beside torchvision's, ranking beside NumPy's, and the two commands."
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from gcutmix.gallery import embed, gcutmix_extract, gcutmix_rank, nearest
from gcutmix.images import normalize
from gcutmix.model import create_model, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net")/"t.safetensors"
    save_model(create_model("PC2", 4, "tiny", dim=8), path, size=(96, 32))
    return str(path)


def call(monkeypatch, capfd, command, *words):
    "Status, what is said, and what the errors are, of a command line."
    monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, words)])
    try: command()
    except SystemExit as end: return end.code, *capfd.readouterr()
    return 0, *capfd.readouterr()


def test_the_map_of_torchvision_pooled(tmp_path):
    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path/"r.pth")
    pictures = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    found, _ = embed(f"resnet18:{tmp_path/'r.pth'}", pictures, progress=False)
    theirs.fc = torch.nn.Identity()
    with torch.inference_mode(): wanted = theirs(normalize(pictures))
    assert (found - wanted).abs().max() < 1e-5*wanted.abs().max()


def test_any_batch_any_kind_one_vector(model, people):
    files = sorted((people/"query").iterdir())
    one, names = embed(model, people/"query", batch_size=5, progress=False)
    many, _ = embed(model, [Image.open(path) for path in files], progress=False)
    arrays, _ = embed(model, (np.array(Image.open(path)) for path in files), progress=False)
    assert names == [path.name for path in files]
    assert (one - many).abs().max() < 1e-4 and torch.equal(many, arrays)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_as_numpy_has_it(metric):
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(300, 6)).astype("f"), rng.normal(size=(40, 6)).astype("f")
    g[3] = g[30]
    index, far = nearest(torch.from_numpy(q), torch.from_numpy(g), 50, metric)
    a, b = q.astype(float), g.astype(float)
    wanted = np.linalg.norm(a[:, None] - b, axis=2)
    if metric == "cosine":
        wanted = 1 - a@b.T/np.linalg.norm(a, axis=1)[:, None]/np.linalg.norm(b, axis=1)
    order = wanted.round(12).argsort(1, kind="stable")
    assert (index == order).all()
    assert np.allclose(far, np.take_along_axis(wanted, order, 1), atol=1e-9)


def test_extract(model, people, tmp_path, monkeypatch, capfd):
    out = tmp_path/"f.npz"
    code, said, _ = call(monkeypatch, capfd, gcutmix_extract, model, people/"query", "-o", out)
    assert code == 0 and "pictures, 24 numbers each" in said
    saved = np.load(out)
    assert (saved["features"] == embed(model, people/"query", progress=False)[0].numpy()).all()
    assert out.stat().st_mode & 0o777 == (people/"pedestrians.json").stat().st_mode & 0o777


def test_rank(model, people, tmp_path, monkeypatch, capfd):
    query = sorted((people/"query").iterdir())[0]
    files = "--figure", tmp_path/"a.png", "--csv", tmp_path/"a.csv"
    words = model, query, people/"query", "-k", 3, *files
    code, said, _ = call(monkeypatch, capfd, gcutmix_rank, *words)
    lines = said.splitlines()
    assert code == 0 and lines[0] == str(query) and len(lines) == 4
    assert not [line for line in lines[1:] if str(query) in line], "the query itself"
    assert Image.open(tmp_path/"a.png").width > 200
    assert len((tmp_path/"a.csv").read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.parametrize("change, said", [
    ("size", "give one --size for all"), ("broken", "2 pictures cannot be used"),
    ("ending", "expected one of .npz, .csv"), ("empty", "no picture in"),
    ("model", "no weight file"), ("folder", "no file or folder")])
def test_mistakes_are_told_in_two_lines(change, said, model, people, tmp_path, monkeypatch, capfd):
    folder, out = tmp_path/"photos", tmp_path/"f.npz"
    folder.mkdir()
    for i in range(3 if change != "empty" else 0):
        Image.new("RGB", (20 + i, 30)).save(folder/f"{i}.png")
    if change == "broken":
        for i in range(2): (folder/f"{i}.png").write_bytes(b"no")
    if change == "size":
        save_model(create_model("G", 4, "tiny", dim=8), tmp_path/"sizeless.safetensors")
        model = tmp_path/"sizeless.safetensors"
    if change == "ending": out = "f.mat"
    if change == "model": model = "nobody.safetensors"
    if change == "folder": folder = tmp_path/"nowhere"
    code, _, error = call(monkeypatch, capfd, gcutmix_extract, model, folder, "-o", out)
    lines = [line for line in error.splitlines() if "image/s" not in line]
    assert code == 2 and len(lines) <= 2 and said in error
    assert not (tmp_path/"f.npz").exists()


@pytest.mark.parametrize("command", [gcutmix_extract, gcutmix_rank])
def test_help_has_two_examples(command):
    text = command.parser().format_help()
    assert text.count(f"\n  {command.__name__} ") == 2 and "(default: 64)" in text
