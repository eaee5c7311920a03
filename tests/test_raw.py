"Raw features: a result of its own kind."
import json
import subprocess

import pytest

from gcutmix.base.files import read_json
from gcutmix.study.raw import gcutmix_raw


def test_a_raw_result_is_not_replaced_by_another(people, tmp_path):
    def raw(*size): gcutmix_raw("people", people, "tiny", "none", size, tmp_path)
    raw(48, 16)
    made = (tmp_path/"raw-tiny.json").read_text()
    with pytest.raises(ValueError, match="other settings"): raw(96, 32)
    assert (tmp_path/"raw-tiny.json").read_text() == made
    raw(48, 16)
    assert read_json(tmp_path/"raw-tiny.json")["metrics"] == json.loads(made)["metrics"]


@pytest.mark.slow
def test_the_recorded_command_makes_the_result_again(people, tmp_path):
    options = "--dataset people --backbone tiny --weights none --size 48x16".split()
    for out in "one", "two":
        command = ["gcutmix_raw", *options, "--root", people, "--out", tmp_path/out]
        subprocess.run(command, check=True, capture_output=True)
        made = read_json(tmp_path/out/"raw-tiny.json")
        options = made["command"].split()[1:]
    assert made["metrics"] == read_json(tmp_path/"one"/"raw-tiny.json")["metrics"]
