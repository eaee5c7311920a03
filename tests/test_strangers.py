"Files, surroundings and command lines of strangers: right numbers, or one sentence."
import io
import json
import os
import pickle
import random
import shlex
import shutil
import stat
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import ROOT
from gcutmix.base.console import command, given, parser_of
from gcutmix.base.files import read_json
from gcutmix.base.weights import write_network
from gcutmix.data import load_dataset
from gcutmix.model import create_backbone, create_model, load_model, save_model
from gcutmix.study.report import draw_attention, draw_group
from gcutmix.study.tables import markdown, read_attention, read_results, table

RESULTS = ROOT/"results"/"pedestrians"
RUN, ATTENTION = (read_json(RESULTS/f"{name}PC2-tiny-s0.json") for name in ("", "attention-"))


# Weight files

@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A network of ours, and the weights of a backbone as .safetensors, .pth and as older pickle."
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_model(create_model("G", 8, "tiny", dim=8), folder/"ours.safetensors")
    state = create_backbone("tiny").state_dict()
    save_file(state, folder/"theirs.safetensors")
    torch.save(state, folder/"zip.pth")
    torch.save(state, folder/"legacy.pth", _use_new_zipfile_serialization=False)
    return folder


def numbers_of(path):
    "What `path` makes of a network, by name."
    if path.stem.startswith("ours"): return load_model(path)[0].state_dict()
    return create_backbone("tiny", path).state_dict()


def told(path):
    "The sentence that refuses a file; None if it is read."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try: numbers_of(path)
        except (ValueError, OSError) as error: said = str(error)
        else: return None
    assert path.name in said and "weights_only" not in said and "\n" not in said
    assert len(said) < 400, said
    return said


def mutated(whole, chance):
    "One to three changed bytes, most of them where the header is, or a cut."
    part = bytearray(whole)
    if chance.random() < .2: return bytes(part[:chance.randrange(len(part))])
    for _ in range(chance.randint(1, 3)):
        end = chance.choice((64, 2000, len(part)))
        part[chance.randrange(min(end, len(part)))] = chance.randrange(256)
    return bytes(part)


def try_mutated(files, folder, name, count, seed=0):
    "Change a file `count` times: refused, or read. Whatever is sealed must be read in full."
    chance, whole = random.Random(f"{name} {seed}"), (files/name).read_bytes()
    path, right = folder/name.replace(".", "-bad."), numbers_of(files/name)
    sealed = name in ("ours.safetensors", "zip.pth")
    outcomes = []
    for _ in range(count):
        path.write_bytes(mutated(whole, chance))
        outcomes.append(told(path) is None)
        if outcomes[-1] and sealed:
            found = numbers_of(path)
            assert all(torch.equal(found[key], right[key]) for key in right)
        elif outcomes[-1]: # then they are what the format's own reader finds
            other = load_file if path.suffix == ".safetensors" else torch.load
            with warnings.catch_warnings(): expected, found = other(path), numbers_of(path)
            assert all(torch.equal(found[key], expected[key]) for key in found)
    return outcomes


@pytest.mark.parametrize("name", ["ours.safetensors", "theirs.safetensors", "zip.pth",
                                  "legacy.pth"])
def test_a_changed_file_is_refused_or_right(files, tmp_path, name):
    assert not all(try_mutated(files, tmp_path, name, 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours.safetensors", "theirs.safetensors", "zip.pth",
                                  "legacy.pth"])
def test_two_hundred_and_fifty_changed_files(files, tmp_path, name):
    "A thousand in all."
    outcomes = try_mutated(files, tmp_path, name, 250, seed=1)
    assert 0 < sum(outcomes) < 250 or name == "ours.safetensors"


class Harm:
    def __reduce__(self): return os.system, ("touch harmed",)


STATE = create_backbone("tiny").state_dict()
FIRST = next(iter(STATE))
WIDE = torch.ones(1).expand(10**12) # of one number
ODD = {"list": [1, 2], "text": "x", "number": 7, "none": None, "bare": torch.ones(2),
       "harm": Harm(), "nested": dict(epoch=1, network=STATE), "module": nn.Linear(2, 2),
       "empty": {}, "keys": {1: torch.ones(2)}, "integers": STATE | {FIRST: STATE[FIRST].int()},
       "complex": STATE | {FIRST: STATE[FIRST] + 0j},
       "nan": STATE | {FIRST: STATE[FIRST]*torch.nan},
       "huge": STATE | {FIRST: STATE[FIRST].double()*1e300}, "lists": STATE | {FIRST: [1.]},
       "shape": STATE | {FIRST: STATE[FIRST][:1]}, "wide": STATE | {FIRST: WIDE},
       "meta": STATE | {FIRST: STATE[FIRST].to("meta")}}


@pytest.mark.parametrize("name", sorted(ODD))
def test_what_is_no_state_dict_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    torch.save(ODD[name], tmp_path/f"{name}.pth")
    assert told(tmp_path/f"{name}.pth")
    assert not (tmp_path/"harmed").exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", pickle.dumps(Harm()), b"<html>",
                                     b"\xff"*99], ids=range(6))
def test_a_file_that_is_none(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    for name in ("odd.pth", "odd.safetensors", "ours.safetensors"):
        (tmp_path/name).write_bytes(content)
        assert told(tmp_path/name)
    assert not (tmp_path/"harmed").exists()


def test_good_files_of_other_kinds_are_read(tmp_path):
    right = create_backbone("tiny")
    state = {key: value.clone() for key, value in right.state_dict().items()}
    for name, content in dict(half={k: v.half() if v.is_floating_point() else v
                                    for k, v in state.items()},
                              module={f"module.{k}": v for k, v in state.items()},
                              nested=dict(epoch=1, state_dict=state),
                              both={f"module._orig_mod.{k}": v for k, v in state.items()},
                              double={k: v.double() if v.is_floating_point() else v
                                      for k, v in state.items()}).items():
        torch.save(content, tmp_path/f"{name}.pth")
        found = numbers_of(tmp_path/f"{name}.pth")
        for key, value in state.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


def header(path, **changes):
    "The header of a .safetensors file with these entries."
    text = json.dumps(changes).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))


def test_hostile_headers(tmp_path):
    path = tmp_path/"ours.safetensors"
    one = dict(dtype="F32", shape=[4], data_offsets=[0, 16])
    for changes in (dict(a=one | dict(shape=[2**40])), dict(a=one, b=one),
                    dict(a=one | dict(data_offsets=[0, 2**60])), dict(a=one | dict(dtype="F99")),
                    dict(a=one | dict(shape=[-4])), dict(__metadata__=[1]), {}):
        header(path, **changes)
        assert told(path)
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert told(path)


RECIPE = dict(variant="G", num_classes=8, backbone="tiny", dim=8)
ABSURD = [dict(num_classes=n) for n in (10**12, 2**70, 0, -1, 1e12, True, "8", None, [8])]
ABSURD += [dict(dim=10**12), dict(dim="8"), dict(dim=8.5), dict(variant="PC9"), dict(variant=["G"]),
           dict(backbone="vgg"), dict(backbone={}), dict(backbone="resnet50"), dict(block=5),
           dict(block=[0, 1]), dict(k=-1), dict(k=float("nan")), dict(overlap=float("nan")),
           dict(partner="me"), dict(accumulate="yes"), dict(variant="PC2")]


@pytest.mark.parametrize("change", ABSURD, ids=str)
def test_absurd_recipes_are_refused_before_memory_is_asked_for(files, tmp_path, change):
    state = load_model(files/"ours.safetensors")[0].state_dict()
    write_network(tmp_path/"ours.safetensors", state, **RECIPE | change)
    assert told(tmp_path/"ours.safetensors")


def test_recipes_that_are_no_recipes(files, tmp_path):
    state = load_file(files/"ours.safetensors")
    for text in ("[1]", "null", "{", "[" * 10**5, "\"text\"", "NaN"):
        save_file(state, tmp_path/"ours.safetensors", dict(config=text))
        assert told(tmp_path/"ours.safetensors")


def test_an_option_of_a_newer_version_is_told(files, tmp_path):
    state = load_model(files/"ours.safetensors")[0].state_dict()
    write_network(tmp_path/"ours.safetensors", state, **RECIPE, ema=.99)
    with pytest.warns(UserWarning, match="ours.safetensors names ema, which plays no part"):
        load_model(tmp_path/"ours.safetensors")


def test_every_method_can_be_saved_and_read(tmp_path):
    "Also those with layers that look at their own numbers while they are built."
    from gcutmix.variants import VARIANTS
    for name in ("SVDNet", "PCB+RPP", "HA-CNN", "PAN", "AOS"):
        assert name in VARIANTS
        save_model(create_model(name, 3, "tiny", dim=8), tmp_path/"ours.safetensors")
        load_model(tmp_path/"ours.safetensors")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_network_is_as_readable_as_the_umask_says(tmp_path, mask, mode):
    before = os.umask(mask)
    try: write_network(tmp_path/"net.safetensors", dict(a=torch.ones(1)))
    finally: os.umask(before)
    assert stat.S_IMODE((tmp_path/"net.safetensors").stat().st_mode) == mode


# Result files

@pytest.fixture
def folder(tmp_path):
    "A folder with one result of PC2 and its attention."
    new = tmp_path/"results"/"pedestrians"
    new.mkdir(parents=True)
    for name in ("PC2-tiny-s0.json", "attention-PC2-tiny-s0.json"): shutil.copy(RESULTS/name, new)
    return new


def changed(content, *keys, value):
    "A copy with one value changed; `keys` lead to it."
    content = json.loads(json.dumps(content))
    *way, last = keys
    inside = content
    for key in way: inside = inside[key]
    inside[last] = value
    return content


NAN = float("nan")
OTHERS = {"list": [1], "text": "x", "number": 7, "null": None, "empty": {}, "foreign": dict(a=1),
          "recipe": dict(recipe=5), "half": {key: RUN[key] for key in ("recipe", "history")},
          "history": changed(RUN, "history", value=[1]), "none": changed(RUN, "history", value=[]),
          "rank": changed(RUN, "metrics", "rank1", value=7),
          "nan": changed(RUN, "seconds", value=NAN),
          "mAP": changed(RUN, "metrics", "mAP", value=NAN),
          "cmc": changed(RUN, "metrics", "cmc", 3, value=-1),
          "word": changed(RUN, "metrics", "cmc", 3, value="1"),
          "epoch": changed(RUN, "history", -1, "rank1", value=1.5),
          "machine": changed(RUN, "hardware", value={}),
          "variant": changed(RUN, "recipe", "variant", value="PC9"),
          "newer": changed(RUN, "recipe", "ema", value=.99),
          "seed": changed(RUN, "recipe", "seed", value=[1]),
          "backbone": changed(RUN, "recipe", "backbone", value="vgg"),
          "size": changed(RUN, "recipe", "size", value="96x32"),
          "k": changed(RUN, "recipe", "k", value=NAN),
          "infinite": changed(RUN, "iterations", value=10**400)}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_what_is_no_result_is_named_and_left_out(folder, name):
    (folder/f"odd-{name}.json").write_text(json.dumps(OTHERS[name]), encoding="utf-8")
    with pytest.warns(UserWarning, match=f"odd-{name}.json") as said: found = read_results(folder)
    assert [r["file"] for r in found] == ["PC2-tiny-s0.json"] and len(said) == 1
    assert "\n" not in str(said[0].message) and len(str(said[0].message)) < 400
    for number in "234": table(found, number, "pedestrians")


LOOKED = {"list": [1], "empty": {}, "split": changed(ATTENTION, "split", value=1),
          "overlap": changed(ATTENTION, "overlap", value=[1]),
          "maps": changed(ATTENTION, "overlap", 0, "maps", value=NAN),
          "recipe": changed(ATTENTION, "recipe", "variant", value="PC9"),
          "cues": changed(ATTENTION, "cues", value={}),
          "changed": changed(ATTENTION, "occlusion", "hat", "changed", value="x"),
          "union": changed(ATTENTION, "coverage", "area", value={})}


@pytest.mark.parametrize("name", sorted(LOOKED))
def test_what_is_no_attention_is_named_and_left_out(folder, name):
    (folder/f"attention-{name}.json").write_text(json.dumps(LOOKED[name]), encoding="utf-8")
    with pytest.warns(UserWarning, match=f"attention-{name}.json"): found = read_attention(folder)
    assert [r["file"] for r in found] == ["attention-PC2-tiny-s0.json"]


def test_copies_of_a_mac_folders_and_pipes_are_left_out(folder):
    (folder/"._PC2-tiny-s0.json").write_bytes(b"\x00\x05\x16\x07")
    (folder/"folder.json").mkdir()
    if hasattr(os, "mkfifo"): os.mkfifo(folder/"pipe.json")
    with pytest.warns(UserWarning, match="._PC2-tiny-s0.json is hidden"):
        assert len(read_results(folder)) == 1


def test_two_results_of_one_seed_are_named(folder):
    shutil.copy(folder/"PC2-tiny-s0.json", folder/"copy.json")
    with pytest.raises(ValueError, match="move copy.json or PC2-tiny-s0.json out"):
        table(read_results(folder), "4", "pedestrians")


# Random changes of a result: each is left out, or the table shows a number that can be

def places(content, way=()):
    "The way to everything in a result."
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*way, key)
        if isinstance(value, (dict, list)): yield from places(value, (*way, key))


VALUES = [NAN, float("inf"), -1, 7, 10**30, "x", "", None, [], {}, [1], {"a": 1}, True, .5]


def try_results(folder, count, seed=0):
    "Change one value of a result `count` times; how often it was left out."
    chance, ways, lost = random.Random(seed), list(places(RUN)), 0
    file = folder/"PC2-tiny-s0.json"
    for _ in range(count):
        odd = changed(RUN, *chance.choice(ways), value=chance.choice(VALUES))
        file.write_text(json.dumps(odd), encoding="utf-8")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = read_results(folder)
        assert bool(found) != bool(said)
        lost += not found
        for number in "234":
            text = markdown(table(found, number, "pedestrians"))
            assert "nan" not in text and "inf" not in text
    return lost


def test_a_changed_result_is_left_out_or_fits_into_the_tables(folder):
    assert 0 < try_results(folder, 40) < 40


@pytest.mark.slow
def test_a_thousand_changed_results(folder): assert 0 < try_results(folder, 1000, 1) < 1000


def try_drawing(folder, count, content, seed):
    "Change one value `count` times, and draw whatever the tables accept; how often that was."
    chance, ways, drawn = random.Random(seed), list(places(content)), 0
    name = "attention-PC2-tiny-s0.json" if content is ATTENTION else "PC2-tiny-s0.json"
    for _ in range(count):
        odd = changed(content, *chance.choice(ways), value=chance.choice(VALUES))
        (folder/name).write_text(json.dumps(odd), encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runs, looked = read_results(folder), read_attention(folder)
        if runs and looked: drawn += 1
        if runs and content is RUN: draw_group("made up", runs, "pedestrians", folder/"run", "")
        if content is ATTENTION: draw_attention(looked, folder/"looked")
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize("content", [RUN, ATTENTION], ids=["run", "attention"])
def test_two_hundred_changed_files_are_drawn(folder, content):
    "Whatever the tables accept, the figures can draw."
    assert 0 < try_drawing(folder, 200, content, 2) < 200


# Commands and their surroundings

def run(*words, cwd, **environment):
    "A command in a process of its own."
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True,
                          env={**os.environ, **environment})
    return done.returncode, *(text.decode(errors="replace") for text in (done.stdout, done.stderr))


@command
def gcutmix_made_up(value: str = "", out: str = None, device: str = "auto"):
    "Fail in a way that `value` names."
    errors = dict(value=ValueError("a\nb\nc"), file=OSError("give another `out`, or device='cpu'"),
                  memory=MemoryError(), ours=KeyError("x"), said=None)
    if value == "said": warnings.warn("a warning", stacklevel=1)
    elif value: raise errors[value]
    print("§ ± †")


@pytest.mark.parametrize("value, said", [("value", "gcutmix_made_up: a\ngcutmix_made_up: b"),
                                         ("file", "give another --out, or --device cpu"),
                                         ("memory", "gcutmix_made_up: MemoryError")])
def test_a_mistake_is_at_most_two_lines_and_status_two(monkeypatch, capsys, value, said):
    monkeypatch.setattr("sys.argv", ["x", "--value", value])
    with pytest.raises(SystemExit) as end: gcutmix_made_up()
    heard = capsys.readouterr().err
    assert end.value.code == 2 and 0 < len(heard.splitlines()) <= 2
    assert said.splitlines()[0] in heard
    monkeypatch.setattr("sys.argv", ["x", "--value", value, "--traceback"])
    with pytest.raises((ValueError, OSError, MemoryError)): gcutmix_made_up()


def test_our_own_mistake_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--value", "ours"])
    with pytest.raises(KeyError): gcutmix_made_up()


def test_a_warning_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "--value", "said"])
    with pytest.warns(UserWarning): gcutmix_made_up()
    before = warnings.formatwarning
    monkeypatch.setattr("sys.argv", ["x"])
    gcutmix_made_up()
    assert warnings.formatwarning is before


def test_none_is_nothing_only_where_that_can_be():
    parser = parser_of(gcutmix_made_up.__wrapped__)
    asked = given(parser, ["--out", "none", "--value", "none"])
    assert asked == dict(value="none", out=None, device="auto")


WRONG = """gcutmix_train --name ../x | gcutmix_train --name .x | gcutmix_train --name a/b
gcutmix_train --seed 1e23 | gcutmix_train --seed 100000000000000000000000 | gcutmix_train --lr nan
gcutmix_train --lr inf | gcutmix_train --epochs -1 | gcutmix_train --epochs 0 | gcutmix_train --p 1
gcutmix_train --size 0x32 | gcutmix_train --size 96 | gcutmix_train --size 100000x100000
gcutmix_train --variant PC9 | gcutmix_train --backbone vgg | gcutmix_train --weights no.pth
gcutmix_train --weights IMAGENET --backbone resnet18 | gcutmix_train --backbone tiny
gcutmix_train --device gpu | gcutmix_train --precision fp8 | gcutmix_train --overlap nan
gcutmix_train --max-steps -1 | gcutmix_train --preset huge | gcutmix_train --dim 1000000000000
gcutmix_train --own true | gcutmix_train --unknown 1 | gcutmix_train --out none --dataset none
gcutmix_evaluate | gcutmix_evaluate no.safetensors | gcutmix_evaluate no.safetensors --device gpu
gcutmix_evaluate no.safetensors --metric x | gcutmix_evaluate no.safetensors --batch-size 0
gcutmix_evaluate no.safetensors --ap-max-rank -1 | gcutmix_evaluate no.safetensors --device cuda:99
gcutmix_pedestrians p --height 0 | gcutmix_pedestrians p --width -1 | gcutmix_pedestrians p --ids -1
gcutmix_pedestrians p --seed -1 | gcutmix_pedestrians p --images 0 | gcutmix_pedestrians p --seed x
gcutmix_reproduce --seeds -1 | gcutmix_reproduce --budget nan | gcutmix_reproduce --backbone vgg
gcutmix_reproduce --table 9 | gcutmix_reproduce --epochs 0 | gcutmix_reproduce --weights no.pth
gcutmix_attention no.safetensors | gcutmix_attention no.safetensors --split gallery
gcutmix_raw --backbone vgg | gcutmix_raw --size 0x0 | gcutmix_raw --weights no.pth
gcutmix_bench --repeats 0 | gcutmix_bench --part nothing | gcutmix_bench --device gpu
gcutmix_bench --size 0x0 | gcutmix_bench --dim -1 | gcutmix_tables --results nowhere
gcutmix_demo --epochs 0"""
WRONG = [line.strip() for text in WRONG.splitlines() for line in text.split("|")]


@pytest.fixture(scope="module")
def commands():
    from importlib.metadata import entry_points
    return {script.name: script.load() for script in entry_points(group="console_scripts")
            if script.name.startswith("gcutmix_")}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_setting_is_told_before_the_data_are_looked_for(commands, line, tmp_path, capsys,
                                                               monkeypatch):
    "In an empty folder without data: the error must be about the setting."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GCUTMIX_DATA", raising=False)
    name, *words = line.split()
    monkeypatch.setattr("sys.argv", [name, *words])
    monkeypatch.setattr("os.environ", dict(os.environ))
    with pytest.raises(SystemExit) as end: commands[name]()
    said = capsys.readouterr().err
    assert end.value.code == 2 and 0 < len(said.splitlines()) <= 2, said
    assert said.startswith(name) and "no data set '" not in said, said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()] # and nothing was written


# Surroundings: no home folder, a notebook's backend, other letters, folders that take no files

ODD_PLACE = dict(HOME="/nowhere", XDG_CACHE_HOME="", PYTHONUTF8="0", LC_ALL="C", MPLCONFIGDIR="",
                 PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="latin-1", MPLBACKEND="module://nothing")
TINY = shlex.split("--preset demo --dataset pedestrians --variant G --epochs 1 --warmup 0 --p 4 "
                   "--dim 8 --device cpu")


@pytest.mark.parametrize("code", ["latin-1", "ascii", "cp1252"])
def test_no_letter_stops_a_command(monkeypatch, code):
    monkeypatch.setattr("sys.argv", ["x"])
    out = io.TextIOWrapper(io.BytesIO(), encoding=code, errors="strict")
    monkeypatch.setattr("sys.stdout", out)
    gcutmix_made_up()
    out.flush()
    assert out.buffer.getvalue().strip()


@pytest.mark.slow
def test_tables_in_an_odd_place(folder, tmp_path):
    "Without a home, with the backend of a notebook, and with a terminal that knows no dagger."
    status, said, error = run("gcutmix_tables", "--results", folder.parent, "--out", "tables",
                              cwd=tmp_path, **ODD_PLACE)
    assert status == 0, error
    assert "†" in (tmp_path/"tables"/"tables.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "evaluate", "pedestrians", "reproduce", "attention",
                                  "raw", "tables", "demo", "bench"])
def test_help_in_an_odd_place(tmp_path, name):
    for code in ("ascii", "latin-1"):
        status, said, error = run(f"gcutmix_{name}", "--help", cwd=tmp_path,
                                  **ODD_PLACE | dict(PYTHONIOENCODING=code))
        assert status == 0 and "--traceback" in said and "Error" not in error, error


# root may write anywhere, unless it is stripped of that
POWERLESS = [] if sys.platform == "win32" or os.getuid() else [
    "setpriv", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.fixture
def odd_place(people, tmp_path):
    "A folder whose data and whose home take no files; only its folder `work` does."
    shutil.copytree(people, tmp_path/"data")
    for name in ("work", "home"): (tmp_path/name).mkdir()
    inside = [path for path in (tmp_path/"data").iterdir() if path.is_dir()]
    closed = [tmp_path/"data", tmp_path/"home", *inside]
    for folder in closed: folder.chmod(0o555)
    yield tmp_path
    for folder in closed: folder.chmod(0o755)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
@pytest.mark.parametrize("home", ["../home", ""])
def test_data_and_home_that_take_no_files(odd_place, home):
    "Train, evaluate and look at the network; what cannot be written is told."
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "OMP_NUM_THREADS")}
    environment = dict(kept, PYTHONPATH=str(ROOT), MPLBACKEND="nothing", LC_ALL="C", PYTHONUTF8="0")
    if home: environment["HOME"] = str((odd_place/"work"/home).resolve())
    def said(*words):
        done = subprocess.run([*POWERLESS, *words], cwd=odd_place/"work", env=environment,
                              capture_output=True, text=True)
        return done.returncode, done.stderr
    train = ["gcutmix_train", *TINY, "--root", "../data"]
    network = ["runs/G-tiny-s0.safetensors", "--root", "../data"]
    for line in (train, ["gcutmix_evaluate", *network], ["gcutmix_attention", *network]):
        status, error = said(*line)
        assert status == 0, error[-2000:]
    status, error = said(*train, "--out", "../data/runs")
    assert status == 2 and "Permission denied" in error and len(error.splitlines()) <= 2
    resnet = ["--backbone", "resnet18", "--weights", "IMAGENET1K_V1", "--name", "other"]
    status, error = said(*train, *resnet)
    assert status == 2 and ("TORCH_HOME" in error or "could not be downloaded" in error), error
    assert not (odd_place/"work"/"~").exists()


def test_almost_a_known_name_is_told(people, tmp_path):
    shutil.copytree(people, tmp_path/"pedestrianz")
    with pytest.warns(UserWarning, match="your own.*'pedestrians'") as said:
        load_dataset("pedestrianz", tmp_path)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset("people", people)
