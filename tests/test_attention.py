"Where the branches look: maps whose answer is known, pictures drawn again, and the command from a run to its file."
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from gcutmix.attention import (SCENE, attention_table, block_overlap, branch_maps, branch_names, by_variant, coverage,
                               cue_cells, cue_shares, drop_cues, gcutmix_attention, map_overlap, measure, mix_stages,
                               open_network, overlaps, plot_attention, plot_cues, plot_mix, plot_occlusion, plot_ranked, redraw, top_blocks)
from gcutmix.data import load_dataset, load_images, normalize
from gcutmix.experiments import read_attention, save_figure
from gcutmix.gradcam import grad_cam
from gcutmix.model import create_model, save_model
from gcutmix.pedestrians import CUES, compose, random_person, scene_of, write_pedestrians
from gcutmix.training import fit, make_preset


@pytest.fixture(scope="module")
def run(people, tmp_path_factory):
    "One epoch of PC2."
    out = tmp_path_factory.mktemp("runs")
    return fit(make_preset("demo", "pedestrians", root=people, out=out, p=4, epochs=1, warmup=1, decay_at=(), dim=32, eval_every=0, device="cpu"), quiet=True)


@pytest.fixture(scope="module")
def result(run, people): return measure(run.paths.model, root=people)


@pytest.fixture
def data(people): return load_dataset("pedestrians", people)


def maps_like(n=6, seed=0): return torch.rand(n, 24, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", [(24, 8), (12, 4), (7, 3), (96, 32)])
def test_shares_add_up_to_one(data, grid):
    cells = cue_cells(data.query.paths[:4], grid)
    assert cells.shape == (4, len(SCENE), *grid) and torch.allclose(cells.sum(1), torch.ones(4, *grid), atol=1e-5)
    shares = cue_shares(torch.rand(4, *grid), cells)
    assert torch.allclose(shares.sum(1), torch.ones(4), atol=1e-5) and (shares >= 0).all()


@pytest.mark.parametrize("cue", ["background", "top", "trousers"])
def test_a_map_wholly_on_one_cue(data, cue):
    cells = cue_cells(data.query.paths[:8], (24, 8))
    inside = (cells[:, SCENE.index(cue)] == 1).float()
    assert inside.any()
    seen = inside.amax((1, 2)) > 0
    assert torch.allclose(cue_shares(3*inside, cells)[seen, SCENE.index(cue)], torch.ones(int(seen.sum())))
    assert cue_shares(inside, cells)[~seen].isnan().all()


def test_an_even_map_gives_each_cue_its_area(data):
    cells = cue_cells(data.query.paths[:4], (24, 8))
    assert torch.allclose(cue_shares(torch.ones(4, 24, 8), cells), cells.mean((2, 3)), atol=1e-6)


def test_overlap_of_the_same_of_disjoint_and_of_half():
    a, left = maps_like(), torch.zeros(6, 24, 8)
    left[..., :4] = 1
    one, none = torch.ones(6), torch.zeros(6)
    assert torch.allclose(map_overlap(a, 7*a), one) and torch.equal(map_overlap(left, 1 - left), none)
    assert torch.allclose(map_overlap(left, torch.ones(6, 24, 8)), one/2)
    assert torch.equal(map_overlap(a, left), map_overlap(left, a)) and map_overlap(a, 0*a).isnan().all()
    assert torch.equal(block_overlap(left > 0, left > 0), one) and torch.equal(block_overlap(left > 0, left == 0), none)


def test_an_empty_map_has_no_top_blocks():
    model, maps = create_model("PC2", 4, "tiny", dim=8, k=5), maps_like()
    maps[2] = 0
    tops = top_blocks(maps, model)
    assert tops.sum((1, 2)).tolist() == [30, 30, 0, 30, 30, 30]
    assert block_overlap(tops, tops).isnan().tolist() == [i == 2 for i in range(6)]


def test_coverage_of_everything_of_nothing_and_of_the_background(data):
    cells = cue_cells(data.query.paths[:6], (24, 8))
    everywhere = torch.ones(6, 24, 8).bool()
    assert torch.allclose(coverage(everywhere, cells), torch.ones(6)) and not coverage(~everywhere, cells).any()
    assert not coverage(cells[:, 0] + cells[:, -1] == 1, cells).any() # background and what stands in front are no person


@pytest.mark.parametrize("cue", CUES[1:])
def test_dropping_a_cue_changes_only_its_neighbourhood(data, cue):
    paths = data.query.paths + data.gallery.paths
    before, after = redraw(paths, (96, 32)), redraw(paths, (96, 32), (cue,))
    changed = (before != after).any(1)
    cover = torch.stack([torch.from_numpy(np.array(compose(*scene_of(path)).coverage({cue}))) for path in paths])
    near = F.max_pool2d(cover[:, None].float(), 13, 1, 6)[:, 0] > 0 # 6 pixels: the blur, and the shade around a body
    assert changed.any() and not (changed & ~near).any()
    assert not changed[cover.amax((1, 2)) == 0].any()


def test_nothing_dropped_is_the_file(data):
    assert torch.equal(redraw(data.query.paths, (96, 32)), load_images(data.query, (96, 32), progress=False))
    small = load_images(data.query, (48, 16), progress=False)
    assert torch.equal(redraw(data.query.paths, (48, 16)), small) # resized as the reader does


@pytest.mark.parametrize("cam_grad", ["sample", "batch"])
def test_maps_are_grad_cams_of_the_label_or_of_the_favourite(data, cam_grad):
    torch.manual_seed(0)
    model, images = create_model("PC2", 16, "tiny", dim=16, k=6, cam_grad=cam_grad).eval(), load_images(data.train, (96, 32), progress=False)[:6]
    steps = model.steps(normalize(images))
    for labels in (torch.arange(6), None):
        maps = branch_maps(model, images, labels, batch_size=4)
        for step, cam in zip(steps, maps):
            y = step.logits.argmax(1) if labels is None else labels
            torch.testing.assert_close(cam, grad_cam(step.features, step.logits.gather(1, y[:, None])[:, 0]), rtol=1e-3, atol=1e-5)


def test_names():
    names = {v: branch_names(create_model(v, 4, "tiny", dim=8)) for v in ("G", "BDB", "BDB3", "PC1", "PC2")}
    assert names == dict(G=["G"], BDB=["G", "BDB1"], BDB3=["G", "BDB1", "BDB2"], PC1=["G", "AC1"], PC2=["G", "AC1", "AC2"])


def test_looking_at_a_step_leaves_the_network_alone(run, data):
    model, _ = open_network(run.paths.model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, labels = load_images(data.train, (96, 32), progress=False)[:16], torch.as_tensor(data.train.labels[:16])
    first, second = (mix_stages(model, images, labels) for _ in "ab")
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, second) for key in a) and not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_command_from_a_run_to_its_file(run, result, people, tmp_path, capsys):
    gcutmix_attention(run.paths.model, root=people, out=tmp_path/"new")
    assert [path.name for path in (tmp_path/"new").iterdir()] == ["attention-PC2-tiny-s0.json"]
    text = (tmp_path/"new"/"attention-PC2-tiny-s0.json").read_text()
    found, printed = json.loads(text), capsys.readouterr().out
    assert {k: v for k, v in found.items() if k != "finished"} == {k: v for k, v in json.loads(json.dumps(result)).items() if k != "finished"}
    assert str(tmp_path) not in text and str(people) not in text and str(run.paths.model.parent) not in text
    assert found["sha256"] == hashlib.sha256(run.paths.model.read_bytes()).hexdigest()[:16]
    assert found["recipe"]["seed"] == 0 and found["recipe"]["variant"] == "PC2" and found["images"] == 16
    assert {"command", "code", "hardware", "packages", "data"} <= set(found) and "hat" in printed and "G and AC1" in printed


def test_another_data_set_never_takes_the_place_of_its_own(run, people, tmp_path):
    shutil.copytree(people, tmp_path/"photos")
    for words in (dict(root=people), dict(dataset="photos", root=tmp_path/"photos")): gcutmix_attention(run.paths.model, out=tmp_path/"new", **words)
    assert sorted(path.name for path in (tmp_path/"new").iterdir()) == ["attention-PC2-tiny-s0.json", "attention-photos-PC2-tiny-s0.json"]
    assert [r["dataset"] for r in read_attention(tmp_path/"new")] == ["pedestrians"]


def test_another_copy_of_the_data_set_is_refused(run, tmp_path):
    other = write_pedestrians(tmp_path/"people", train_ids=8, test_ids=8, images=4)
    with pytest.raises(ValueError, match="on 16 people, pedestrians in .* has 8 to train on"): measure(run.paths.model, root=other)


def test_the_numbers_of_a_result(result):
    for shares in result["cues"]["share"].values(): assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert sum(result["cues"]["area"].values()) == pytest.approx(1, abs=1e-3)
    assert [o["branches"] for o in result["overlap"]] == [["G", "AC1"], ["G", "AC2"], ["AC1", "AC2"]]
    assert all(0 <= o[key] <= 1 for o in result["overlap"] for key in ("maps", "blocks", "blocks_by_chance"))
    person, area = result["coverage"]["person"], result["coverage"]["area"]
    assert person["union"] >= max(person.values()) and area["union"] <= sum(area[name] for name in ("G", "AC1", "AC2")) + 1e-5
    assert list(result["occlusion"]) == list(CUES) and result["occlusion"]["background"]["changed"] == 16
    whole = result["metrics"]["rank1"]
    assert all(whole - 1 <= o["rank1_lost"] <= whole + 1e-6 and 0 <= o["changed"] <= 16 for o in result["occlusion"].values())


def test_the_metrics_are_those_of_the_run(result, run):
    assert result["metrics"]["rank1"] == pytest.approx(run.metrics.rank1) and result["metrics"]["mAP"] == pytest.approx(run.metrics.mAP, abs=1e-6)


def test_a_cue_that_nobody_wears_costs_nothing(run, data):
    bare = [i for i, pid in enumerate(data.query.pids) if random_person(0, int(pid)).bag[0] == "none"]
    data.query.paths, data.query.pids, data.query.camids = [data.query.paths[i] for i in bare], data.query.pids[bare], data.query.camids[bare]
    model, _ = open_network(run.paths.model)
    assert bare and drop_cues(model, data, (96, 32), ("bag",))["occlusion"] == dict(bag=dict(changed=0, rank1_lost=0, mAP_lost=0))


def test_training_people_have_their_own_class(run, data, people, tmp_path):
    gcutmix_attention(run.paths.model, root=people, split="train", out=tmp_path)
    found = json.loads((tmp_path/"attention-train-PC2-tiny-s0.json").read_text())
    assert (found["split"], found["images"], found["labels"]) == ("train", 64, "own class")
    (model, _), images = open_network(run.paths.model), load_images(data.train, (96, 32), progress=False)
    own, favourite = (overlaps(model, branch_maps(model, images, labels)) for labels in (data.train.labels, None))
    assert found["overlap"] == own != favourite


def test_pictures_without_masks_give_overlaps_only(run, people, tmp_path):
    shutil.copytree(people, tmp_path/"photos")
    (tmp_path/"photos"/"pedestrians.json").unlink()
    found = measure(run.paths.model, "photos", tmp_path/"photos")
    assert not {"cues", "coverage", "occlusion"} & set(found) and len(found["overlap"]) == 3
    head, empty, *rest = attention_table(found).splitlines()[1:]
    assert head.split() == ["G", "AC1", "AC2"] and empty.startswith("empty maps") and "overlap of maps" in rest[0]
    with pytest.raises(ValueError, match="only drawn pedestrians"): plot_cues([found])


def test_errors_say_what_to_do(run, result, people, tmp_path):
    with pytest.raises(FileNotFoundError, match="no network .*gcutmix_train writes"): measure(tmp_path/"none.safetensors", root=people)
    (tmp_path/"text.safetensors").write_text("no network")
    with pytest.raises(ValueError, match="text.safetensors is no whole"): measure(tmp_path/"text.safetensors", root=people)
    save_file({"w": torch.zeros(1)}, tmp_path/"foreign.safetensors")
    with pytest.raises(ValueError, match="no recipe"): measure(tmp_path/"foreign.safetensors", root=people)
    save_model(create_model("G", 4, "tiny", dim=8), tmp_path/"bare.safetensors")
    with pytest.raises(ValueError, match="does not name its dataset and size"): measure(tmp_path/"bare.safetensors", root=people)
    with pytest.raises(FileNotFoundError, match="no data set 'market1501'"): measure(run.paths.model, "market1501", tmp_path)
    for folder in ("bounding_box_train", "query", "bounding_box_test"): (tmp_path/"empty"/folder).mkdir(parents=True)
    with pytest.raises(ValueError, match="no image of a person"): measure(run.paths.model, "empty", tmp_path/"empty")
    with pytest.raises(ValueError, match="'query' or 'train'"): measure(run.paths.model, root=people, split="gallery")
    save_model(create_model("G", 4, "tiny", dim=8), tmp_path/"four.safetensors", dataset="pedestrians", size=(96, 32))
    with pytest.raises(ValueError, match="trained on 4 people, pedestrians in .* has 16"): measure(tmp_path/"four.safetensors", root=people)
    with pytest.raises(ValueError, match="trained on 4 people, people has 16"): measure(tmp_path/"four.safetensors", "people", people, split="train")
    with pytest.raises(ValueError, match="mixes nothing"): mix_stages(create_model("BDB3", 4, "tiny", dim=8), None, None)
    with pytest.raises(ValueError, match="2 sets of pictures"): by_variant([result, result | dict(split="train")])
    older = {key: value for key, value in result["recipe"].items() if key != "k"}
    with pytest.raises(ValueError, match="differ in k"): by_variant([result, result | dict(recipe=older)])


def test_pictures_of_another_version(run, people, tmp_path):
    shutil.copytree(people, tmp_path/"people")
    first = sorted((tmp_path/"people"/"query").iterdir())[0]
    Image.new("RGB", (32, 96)).save(first)
    with pytest.raises(ValueError, match="another version; draw it anew"): measure(run.paths.model, root=tmp_path/"people")


def test_figures_are_small_and_show_every_seed(run, result, data, tmp_path):
    model, images = open_network(run.paths.model)[0], load_images(data.train, (96, 32), progress=False)
    labels = torch.as_tensor(data.train.labels)
    other = result | dict(recipe=result["recipe"] | dict(variant="G"), branches=["G"])
    figures = dict(cues=plot_cues([result, result, other]), occlusion=plot_occlusion([result, result, other]), one=plot_cues([other]),
                   mix=plot_mix(model, images[:16], labels[:16], anchor=5), attention=plot_attention(model, images[:8:2], labels[:8:2]),
                   single=plot_attention(model, images[:1]), ranked=plot_ranked(model, data, (96, 32), n=1))
    assert [len(ax.lines) for ax in figures["cues"].axes] == [1, 4] # the line at 1, and for each branch the dots of two runs
    bald = json.loads(json.dumps(result)) # a set without hats, and a branch without maps
    bald["cues"]["area"]["hat"], bald["cues"]["share"]["AC1"] = 0, dict.fromkeys(SCENE)
    ax = plot_cues([bald]).axes[0]
    heights = np.array([bar.get_height() for bar in ax.patches]).reshape(3, -1)
    assert len(ax.get_xticks()) == heights.shape[1] == len(SCENE) - 1 and np.isnan(heights[1]).all() and not np.isnan(heights[[0, 2]]).any()
    for name, figure in figures.items():
        save_figure(figure, tmp_path/f"{name}.png")
        assert (tmp_path/f"{name}.png").stat().st_size < 150_000, name
