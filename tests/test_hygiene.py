"ruff and mypy find nothing in the exported package, and would find something if it were there."
import re
import subprocess
import sys

import pytest

from conftest import ROOT

MYPY = ["mypy", "--config-file", ROOT/"tests"/"mypy.ini", "--cache-dir"]
RUFF = ["ruff", "check", "--config", ROOT/"tests"/"ruff.toml", "--no-cache", "--output-format",
        "concise"]
LINES = [(path.name, line) for path in (ROOT/"gcutmix").rglob("*.py")
         for line in path.read_text(encoding="utf-8").splitlines()]
WAIVED = re.compile(r"# (noqa|type: ignore)(.*)")


def findings(*command, cwd=ROOT):
    "What a checker prints if it finds something, and nothing otherwise."
    done = subprocess.run([sys.executable, "-m", *map(str, command)], cwd=cwd, text=True,
                          capture_output=True)
    assert done.returncode in (0, 1), done.stderr # 2: it could not work at all
    return done.stdout if done.returncode else ""


def reason(waived):
    "What a comment says after the code of the rule that it waives."
    found = re.fullmatch(r"[:\[] ?[\w-]+\]?[ #]*(.*)", waived)
    return found[1] if found else ""


def test_ruff_finds_nothing(): assert not findings(*RUFF, "gcutmix")


def test_mypy_finds_nothing(tmp_path): assert not findings(*MYPY, tmp_path, "gcutmix")


@pytest.mark.parametrize("code, rule", [
    ("import os", "unused-import"), ("def f(x=[]): return x", "mutable-argument-default"),
    ("def f(): return undefined", "undefined-name"), ("eval('1')", "suspicious-eval-usage"),
    ("from pathlib import Path\nPath('x').read_text()", "unspecified-encoding"),
    ("def f(d):\n    for x in d: pass\n    return d[1, *x]", "invalid-syntax"), # of Python 3.11
    ("try: print()\nexcept Exception: print()", "blind-except")])
def test_ruff_sees_a_fault(tmp_path, code, rule):
    (tmp_path/"made_up.py").write_text(code + "\n", encoding="utf-8")
    assert rule in findings(*RUFF, "made_up.py", cwd=tmp_path)


def test_mypy_sees_a_fault(tmp_path):
    "Without an annotation, too."
    code = "class A: pass\ndef f(x): return x\ndef g():\n    f(1, 2)\n    return A().b + (1 + '')\n"
    (tmp_path/"made_up.py").write_text(code, encoding="utf-8")
    found = findings(*MYPY, tmp_path/"cache", "made_up.py", cwd=tmp_path)
    assert all(rule in found for rule in ("call-arg", "attr-defined", "operator"))


def test_what_is_waived_has_a_reason():
    waived = [(name, found[2]) for name, line in LINES if (found := WAIVED.search(line))]
    assert not [each for each in waived if len(reason(each[1])) < 5]
    assert not reason(": F401") and not reason("[attr-defined]") and not reason("")
