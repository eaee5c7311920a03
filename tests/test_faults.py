"Nothing is lost and nothing is silent: each fault of the table, once; the long ones slowly."
import os
import random
from dataclasses import replace

import pytest
import torch

from gcutmix.bench import harm
from gcutmix.bench.faults import (FAULTS, Fault, different, find_faults, measure_faults,
                                  table_of_faults, try_fault, try_often)
from gcutmix.bench.harm import Outcome, attempt, differs, refused, small_run, unharmed
from gcutmix.bench.races import Bench
from gcutmix.training import fit

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and limits of POSIX")
# these take about as long as they take to start: a Python of their own, or many trainings
LONG = {"kill", "kill-file", "disk", "twice", "litter", "hostile", "places", "drawer"}
QUICK = [fault for fault in FAULTS if fault.name not in LONG]


@pytest.fixture
def forked(monkeypatch):
    "Children are copies of this process: they need not import torch."
    monkeypatch.setattr(harm, "METHOD", "fork")


@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.name)
def test_nothing_is_lost_and_it_is_said(fault, forked):
    assert not try_fault(fault, 1).lost


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_nothing_is_lost_in_many_tries(fault):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: assert not try_often(replace(fault, tries=min(fault.tries, 20)))["losses"]
    finally: torch.set_num_threads(threads)


def test_a_loss_is_seen(tmp_path):
    assert not differs(unharmed())
    other = fit(small_run(tmp_path, lr=.005), quiet=True)
    assert differs(other) == "other weights than without the fault"
    assert differs(fit(small_run(tmp_path, name="stopped"), 1, quiet=True))


def broken(): raise KeyError("unforeseen")


def rude(): raise ValueError("x.pth: use weights_only=False")


@pytest.mark.parametrize("call, names, lost", [
    (list, (), "taken without an error"), (broken, (), "an unforeseen KeyError"),
    (rude, ("y.pth",), "the message does not name y.pth"),
    (rude, ("x.pth",), "advice to run foreign code")])
def test_a_bad_refusal_is_seen(call, names, lost): assert refused(attempt(call), *names) == lost


def table(*outcomes):
    fault = Fault("made-up", lambda folder, rng, n: outcomes[n], len(outcomes))
    return try_often(fault)


def test_losses_silence_and_errors_are_counted(capsys):
    found = table(Outcome("", "a.pt is bad"), Outcome("a file", "b"), Outcome("", ""))
    assert found["losses"] == {"a file": 1, "nothing was said": 1} and found["lost"] == 2
    assert "2 of 3" in capsys.readouterr().out
    def crash(folder, rng, n): raise RuntimeError(f"in {folder}/x.pt")
    assert try_fault(Fault("crash", crash, 1)).lost == "RuntimeError: in FOLDER/x.pt"


def test_the_same_try_is_the_same_again():
    def dice(folder, rng, n): return Outcome("", str(rng.random()))
    first, second = (try_fault(Fault("dice", dice, 2), n).said for n in range(2))
    assert first == try_fault(Fault("dice", dice, 2)).said != second
    assert first != try_fault(Fault("cube", dice, 2)).said


def test_messages_that_differ_in_numbers_are_one():
    assert different(["3 of 4", "5 of 6", "", "none", "a", "b"]) == ["3 of 4", "none", "a"]


def test_the_table_has_a_row_per_fault(capsys):
    result = measure_faults(Bench(device="cpu", faults=("deep", "turned")))
    before = dict(faults=[dict(name="deep", lost=1, tries=1)])
    rows = table_of_faults(result, before)
    assert [row["fault"] for row in rows] == ["deep", "turned"]
    assert [row["lost before"] for row in rows] == ["1 of 1", ""]
    assert result["facts"][0]["value"] == 8
    with pytest.raises(ValueError, match="expected kill, kill-file"): find_faults(["war"])
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.what for fault in FAULTS)


def test_a_bit_is_turned_and_an_end_is_lost(tmp_path):
    from gcutmix.bench.strange import cut, flip
    file, data = tmp_path/"file", bytes(range(99))
    file.write_bytes(data)
    flip(file, random.Random(0))
    assert sum((a ^ b).bit_count() for a, b in zip(file.read_bytes(), data)) == 1
    cut(file, random.Random(0))
    assert len(file.read_bytes()) < 99
