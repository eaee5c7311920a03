"The doctor, in front of healthy and of sick machines: a line each, no traceback, a true status."
import importlib
import shutil
import sys

import pytest
import torch

from gcutmix import doctor
from gcutmix.base import machine
from gcutmix.base.files import FOLDERS
from gcutmix.data import TABLE1
from gcutmix.doctor import check_data, check_device, check_networks, check_room, check_weights

NAME = "cuhk03-p1-detected"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "Empty files, as many as Table 1 counts."
    root = tmp_path_factory.mktemp("data")
    for split, (people, pictures) in TABLE1[NAME].items():
        place = root/"detected"/FOLDERS[split]
        place.mkdir(parents=True)
        for i in range(pictures): (place/f"{i % people + 1:04d}_c{i % 2 + 1}_{i:05d}.jpg").touch()
    return root


def told(check, root=None): return {each.name: each for each in check(root)}


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["gcutmix_doctor", *map(str, words)])
    status = doctor.gcutmix_doctor()
    return status, capsys.readouterr().out


def test_counts_as_in_table_1(whole):
    found = told(check_data, whole)
    assert found[NAME].ok and "4,273 + 804 + 3,100 pictures in" in found[NAME].text
    assert found[NAME].text.endswith("as in Table 1")
    # the same folder is not a damaged copy of another one
    assert "not in" in found["cuhk03-detected"].text and not found["cuhk03-detected"].ok


def test_a_picture_too_few(whole):
    picture = next((whole/"detected"/"query").iterdir())
    picture.unlink()
    found = told(check_data, whole)[NAME]
    picture.touch()
    assert not found.ok and "803 images" in found.text and "expected 804" in found.text


def test_a_folder_that_is_missing_and_names_that_say_nothing(whole, tmp_path):
    place = tmp_path/"Market-1501-v15.09.15"
    for name in ("bounding_box_train", "bounding_box_test"): (place/name).mkdir(parents=True)
    assert "no image of a person" in told(check_data, tmp_path)["market1501"].text
    (place/"bounding_box_train"/"holiday.jpg").touch()
    found = told(check_data, tmp_path)["market1501"]
    assert not found.ok and "cannot read" in found.text and "\n" not in found.text


def test_data_of_ones_own(people):
    found = told(check_data, people)
    assert found["people, your own"].ok and "64 + " in found["people, your own"].text
    assert not found["market1501"].ok and "not in" in found["market1501"].text


def test_the_release_of_cuhk03(tmp_path):
    (tmp_path/"cuhk-03.mat").touch()
    found = told(check_data, tmp_path)
    assert "config_detected.mat is not" in found["cuhk03-detected"].text
    (tmp_path/"cuhk03_new_protocol_config_detected.mat").touch()
    found = told(check_data, tmp_path)
    assert found["cuhk03-detected"].ok and not found["cuhk03-labeled"].ok


def test_no_data_at_all(tmp_path, monkeypatch):
    monkeypatch.delenv("GCUTMIX_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    for root in (None, tmp_path/"nowhere"):
        found = told(check_data, root)
        assert [name for name, each in found.items() if each.ok] == ["pedestrians"]
        assert all("--root" in each.text for each in found.values() if not each.ok)


def test_devices(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(doctor, "choose_device", lambda: cpu)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "no GPU" in told(check_device)["device"].text
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert "there is an NVIDIA driver" in told(check_device)["device"].text
    monkeypatch.setattr(doctor, "choose_device", lambda: torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**36, 2**37))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Made Up 9000")
    found = told(check_device)["device"]
    assert found.ok and found.text == "Made Up 9000, 64 of 128 GiB free"


def test_room(tmp_path, monkeypatch):
    "A full disk, and a cache that takes no files."
    usage = type("", (), dict(free=10**7))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = told(check_room)
    assert all(not each.ok and each.needed for each in found.values())
    monkeypatch.undo()
    (tmp_path/"file").touch()
    monkeypatch.setenv("GCUTMIX_CACHE", str(tmp_path/"file"/"cache"))
    assert "set GCUTMIX_CACHE" in told(check_room)["cache"].text


def test_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = told(check_weights)
    assert "put resnet50-0676ba61.pth into" in found["weights of resnet50"].text
    (tmp_path/"checkpoints").mkdir()
    (tmp_path/"checkpoints"/"resnet50-0676ba61.pth").touch()
    assert told(check_weights)["weights of resnet50"].ok
    assert "PC2-tiny-s0" in told(check_networks)["trained networks"].text


def test_a_healthy_machine(people, monkeypatch, capsys):
    status, said = call(monkeypatch, capsys, "--root", people)
    lines = said.splitlines()
    assert status == 0 and all(each.startswith(("[ok] ", "[--] ")) for each in lines[:-1])
    assert "[ok] one step: of PC2 on" in said and lines[-1].startswith("Training on drawn people")


@pytest.mark.parametrize("name", sorted(doctor.CHECKS))
def test_whatever_breaks_is_a_line(name, monkeypatch, capsys):
    def breaks(root): raise RuntimeError("CUDA error: it is on fire\nmore")
    quick = {each: lambda root: [] for each in doctor.CHECKS} | {name: breaks}
    monkeypatch.setattr(doctor, "CHECKS", quick)
    status, said = call(monkeypatch, capsys)
    assert said.startswith(f"[--] {name}: CUDA error: it is on fire\n")
    assert status == (name in ("Python", "packages", "room", "step"))


def test_an_old_python_and_old_packages(monkeypatch, capsys):
    monkeypatch.setattr(machine.platform, "python_version", lambda: "3.8.1")
    monkeypatch.setattr(machine, "_here", {"torch": "1.13", "torchvision": "0.14"}.get)
    status, said = call(monkeypatch, capsys)
    assert status == 1 and "[--] Python: 3.8.1, expected >=3.10" in said
    assert "pip install 'torch>=2.6' 'numpy' " in said
    assert said.splitlines()[-1].startswith("Training cannot run here yet. First mend: Python, ")


@pytest.fixture
def without_torchvision(monkeypatch):
    "As if it did not go with torch."
    monkeypatch.setitem(sys.modules, "torchvision", None)
    yield importlib.reload(doctor)
    monkeypatch.undo()
    importlib.reload(doctor)


def test_packages_that_cannot_be_loaded(without_torchvision, capsys):
    assert without_torchvision.gcutmix_doctor() == 1
    said = capsys.readouterr().out
    assert "[ok] Python" in said and "[--] import: " in said and "one step" not in said
    assert "pip install -U torch torchvision" in said


def test_a_split_of_ours_does_not_ask_for_a_protocol(tmp_path, monkeypatch, capsys):
    "cuhk03-p1-detected is not in the old release."
    (tmp_path/"cuhk-03.mat").write_bytes(b"")
    _, said = call(monkeypatch, capsys, "--root", tmp_path)
    assert "config_detected.mat" in said and "config_p1-detected.mat" not in said


def test_the_folder_at_hand_has_a_name(people, monkeypatch, capsys):
    "A data set of one's own is not taken for VeRi, only because its folder is called a dot."
    monkeypatch.chdir(people)
    _, said = call(monkeypatch, capsys, "--root", ".")
    assert "[ok] people, your own: 64 + 16 + 16 pictures" in said
    assert "[ok] veri" not in said and "[ok] viper" not in said
