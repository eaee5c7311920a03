"""A setting that is added later means 'as before' by default: every committed result, network and
stored command is read so. The made-up setting here stands for the next one."""
import json
import shlex
from dataclasses import field, make_dataclass

import pytest

import gcutmix.commands as commands
import gcutmix.config as config
import gcutmix.model as model
from conftest import ROOT
from gcutmix.base.console import given, parser_of
from gcutmix.base.resume import recipe
from gcutmix.variants import idle_settings

RESULTS = ROOT/"results"
RUNS = [path for path in sorted(RESULTS.rglob("*.json"))
        if json.loads(path.read_text()).get("command", "").startswith("gcutmix_train")]


@pytest.fixture
def added(monkeypatch):
    "TrainConfig and Options, each with one setting more."
    new = [("made_up", str, field(default="as before"))]
    options = make_dataclass("Options", new, bases=(config.Options,))
    wider = make_dataclass("TrainConfig", new, bases=(config.TrainConfig,))
    for module in (config, commands): monkeypatch.setattr(module, "TrainConfig", wider)
    for module in (config, model): monkeypatch.setattr(module, "Options", options)
    return wider


def test_there_are_results(): assert len(RUNS) > 80


def test_every_result_is_read_with_the_default(added):
    for path in RUNS:
        run = config.read_run(path)
        assert run.config.made_up == "as before"
        # and it is the result of that configuration
        kept = {key: getattr(run.config, key) for key in ("out", "name")}
        assert config.read_run(path, added(**{**recipe(run.config), **kept})).history


def test_a_different_value_is_a_different_run(added):
    run = config.read_run(RUNS[0])
    run.config.made_up = "else"
    with pytest.raises(ValueError, match="made_up 'as before', now 'else'"):
        config.read_run(RUNS[0], run.config)


def test_every_stored_command_gives_its_recipe(added):
    parser = parser_of(commands.gcutmix_train.__wrapped__, added)
    for path in RUNS:
        result = json.loads(path.read_text())
        asked = given(parser, shlex.split(result["command"])[1:])
        preset, dataset, *_ = map(asked.pop, ("preset", "dataset", "max_steps", "show"))
        found = recipe(config.make_preset(preset, dataset, **asked))
        assert found.items() >= result["recipe"].items() and found["made_up"] == "as before"


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.safetensors")), ids=lambda path: path.stem)
def test_every_committed_network_is_read(added, path):
    network, found = model.load_model(path)
    assert network.options.made_up == found["made_up"] == "as before"


def test_both_spellings_are_one_option():
    parser = commands.gcutmix_train.parser()
    for line in ("--weight_decay 0.1 --decay_at 1,2", "--weight-decay 0.1 --decay-at 1,2"):
        asked = given(parser, shlex.split(line))
        assert (asked["weight_decay"], asked["decay_at"]) == (.1, (1, 2))


def test_every_setting_is_an_option_with_help():
    text = " ".join(commands.gcutmix_train.parser().format_help().split())
    for option in config.TrainConfig.__dataclass_fields__: assert f"--{option}" in text
    assert "base learning rate of Adam" in text and "blocks replaced" in text


def test_a_newer_files_setting_is_an_error(tmp_path):
    result = json.loads(RUNS[0].read_text())
    result["recipe"]["ema"] = .99
    (tmp_path/"G.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="names the setting 'ema'.*newer"):
        config.read_run(tmp_path/"G.json")


def test_a_schedule_is_not_ahead_of_all_its_epochs():
    with pytest.raises(ValueError, match="schedule_ahead 5: expected 1 at most"):
        config.make_preset("demo", epochs=1, warmup=0, decay_at=(), schedule_ahead=5)


@pytest.mark.parametrize(("variant", "reads"), [
    ("G", "start"), ("BDB", "start pool"), ("PC2", "start pool fill partner k"), ("PCB", ""),
    ("G+CutMix", "start"), ("G+AttentiveCutMix", "start k")])
def test_a_method_says_which_settings_it_does_not_read(variant, reads):
    idle = idle_settings(config.make_preset("demo", variant=variant))
    assert {"start", "pool", "fill", "partner", "k"} - idle == set(reads.split())
