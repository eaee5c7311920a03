"Where the branches look: maps whose answer is known, pictures drawn again, the command's file."
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from gcutmix.data import load_dataset
from gcutmix.drawn.bodies import CUES
from gcutmix.drawn.scenes import compose
from gcutmix.drawn.wardrobe import random_person
from gcutmix.gradcam import grad_cam
from gcutmix.images import load_images, normalize
from gcutmix.model import create_model, save_model
from gcutmix.pedestrians import scene_of, write_pedestrians
from gcutmix.study.attention import attention_table, gcutmix_attention, measure, open_network
from gcutmix.study.cues import (SCENE, by_variant, check_recipes, coverage, cue_cells,
                                cue_shares, drop_cues, redraw)
from gcutmix.study.exhibits import (plot_attention, plot_cues, plot_mix, plot_occlusion,
                                    plot_ranked)
from gcutmix.study.maps import (block_overlap, branch_maps, branch_names, map_overlap,
                                mix_stages, overlaps, top_blocks)
from gcutmix.study.report import save_figure
from gcutmix.study.tables import read_attention
from gcutmix.training import fit, make_preset

SIZE = 96, 32


def refused(kind, message): return pytest.raises(kind, match=message)


@pytest.fixture(scope="module")
def run(people, tmp_path_factory):
    "One epoch of PC2."
    out = tmp_path_factory.mktemp("runs")
    short = dict(p=4, epochs=1, warmup=1, decay_at=(), dim=32, eval_every=0, device="cpu")
    return fit(make_preset("demo", "pedestrians", root=people, out=out, **short), quiet=True)


@pytest.fixture(scope="module")
def result(run, people): return measure(run.paths.model, root=people)


@pytest.fixture
def data(people): return load_dataset("pedestrians", people)


def maps_like(n=6, seed=0):
    return torch.rand(n, 24, 8, generator=torch.Generator().manual_seed(seed))


def pictures(split): return load_images(split, SIZE, progress=False)


@pytest.mark.parametrize("grid", [(24, 8), (12, 4), (7, 3), (96, 32)])
def test_shares_add_up_to_one(data, grid):
    cells = cue_cells(data.query.paths[:4], grid)
    assert cells.shape == (4, len(SCENE), *grid)
    assert torch.allclose(cells.sum(1), torch.ones(4, *grid), atol=1e-5)
    shares = cue_shares(torch.rand(4, *grid), cells)
    assert torch.allclose(shares.sum(1), torch.ones(4), atol=1e-5) and (shares >= 0).all()


@pytest.mark.parametrize("cue", ["background", "top", "trousers"])
def test_a_map_wholly_on_one_cue(data, cue):
    cells = cue_cells(data.query.paths[:8], (24, 8))
    inside = (cells[:, SCENE.index(cue)] == 1).float()
    assert inside.any()
    seen = inside.amax((1, 2)) > 0
    share = cue_shares(3*inside, cells)[seen, SCENE.index(cue)]
    assert torch.allclose(share, torch.ones(int(seen.sum())))
    assert cue_shares(inside, cells)[~seen].isnan().all()


def test_an_even_map_gives_each_cue_its_area(data):
    cells = cue_cells(data.query.paths[:4], (24, 8))
    even = cue_shares(torch.ones(4, 24, 8), cells)
    assert torch.allclose(even, cells.mean((2, 3)), atol=1e-6)


def test_overlap_of_the_same_of_disjoint_and_of_half():
    a, left = maps_like(), torch.zeros(6, 24, 8)
    left[..., :4] = 1
    one, none = torch.ones(6), torch.zeros(6)
    assert torch.allclose(map_overlap(a, 7*a), one)
    assert torch.equal(map_overlap(left, 1 - left), none)
    assert torch.allclose(map_overlap(left, torch.ones(6, 24, 8)), one/2)
    assert torch.equal(map_overlap(a, left), map_overlap(left, a))
    assert map_overlap(a, 0*a).isnan().all()
    assert torch.equal(block_overlap(left > 0, left > 0), one)
    assert torch.equal(block_overlap(left > 0, left == 0), none)


def test_an_empty_map_has_no_top_blocks():
    model, maps = create_model("PC2", 4, "tiny", dim=8, k=5), maps_like()
    maps[2] = 0
    tops = top_blocks(maps, model)
    assert tops.sum((1, 2)).tolist() == [30, 30, 0, 30, 30, 30]
    assert block_overlap(tops, tops).isnan().tolist() == [i == 2 for i in range(6)]


def test_coverage_of_everything_of_nothing_and_of_the_background(data):
    cells = cue_cells(data.query.paths[:6], (24, 8))
    everywhere = torch.ones(6, 24, 8).bool()
    assert torch.allclose(coverage(everywhere, cells), torch.ones(6))
    assert not coverage(~everywhere, cells).any()
    # background and what stands in front are no person
    assert not coverage(cells[:, 0] + cells[:, -1] == 1, cells).any()


@pytest.mark.parametrize("cue", CUES[1:])
def test_dropping_a_cue_changes_only_its_neighbourhood(data, cue):
    paths = data.query.paths + data.gallery.paths
    before, after = redraw(paths, SIZE), redraw(paths, SIZE, (cue,))
    changed = (before != after).any(1)
    cover = [np.array(compose(*scene_of(path)).coverage({cue})) for path in paths]
    cover = torch.from_numpy(np.stack(cover))
    # 6 pixels: the blur, and the shade around a body
    near = F.max_pool2d(cover[:, None].float(), 13, 1, 6)[:, 0] > 0
    assert changed.any() and not (changed & ~near).any()
    assert not changed[cover.amax((1, 2)) == 0].any()


def test_nothing_dropped_is_the_file(data):
    assert torch.equal(redraw(data.query.paths, SIZE), pictures(data.query))
    small = load_images(data.query, (48, 16), progress=False)
    assert torch.equal(redraw(data.query.paths, (48, 16)), small) # resized as the reader does


@pytest.mark.parametrize("cam_grad", ["sample", "batch"])
def test_maps_are_grad_cams_of_the_label_or_of_the_favourite(data, cam_grad):
    torch.manual_seed(0)
    model = create_model("PC2", 16, "tiny", dim=16, k=6, cam_grad=cam_grad).eval()
    images = pictures(data.train)[:6]
    steps = model.steps(normalize(images))
    for labels in (torch.arange(6), None):
        maps = branch_maps(model, images, labels, batch_size=4)
        for step, cam in zip(steps, maps):
            y = step.logits.argmax(1) if labels is None else labels
            score = step.logits.gather(1, y[:, None])[:, 0]
            expected = grad_cam(step.features, score)
            torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-5)


def test_looking_leaves_the_mode_of_every_module(data):
    images = pictures(data.train)[:4]
    model = create_model("PC2", 16, "tiny", dim=16, k=6).train()
    model.backbone[0].eval() # a frozen part
    before = {name: module.training for name, module in model.named_modules()}
    for look in (branch_maps, plot_attention):
        look(model, images)
        assert {name: module.training for name, module in model.named_modules()} == before
    with pytest.raises(IndexError): branch_maps(model, images, [0]) # labels are missing
    assert {name: module.training for name, module in model.named_modules()} == before


def test_names():
    expected = dict(G=["G"], BDB=["G", "BDB1"], BDB3=["G", "BDB1", "BDB2"], PC1=["G", "AC1"],
                    PC2=["G", "AC1", "AC2"])
    for variant, names in expected.items():
        assert branch_names(create_model(variant, 4, "tiny", dim=8)) == names


def test_looking_at_a_step_leaves_the_network_alone(run, data):
    model, _ = open_network(run.paths.model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, labels = pictures(data.train)[:16], torch.as_tensor(data.train.labels[:16])
    first, second = (mix_stages(model, images, labels) for _ in "ab")
    for a, b in zip(first, second): assert all(torch.equal(a[key], b[key]) for key in a)
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_command_from_a_run_to_its_file(run, result, people, tmp_path, capsys):
    gcutmix_attention(run.paths.model, root=people, out=tmp_path/"new")
    assert [path.name for path in (tmp_path/"new").iterdir()] == ["attention-PC2-tiny-s0.json"]
    text = (tmp_path/"new"/"attention-PC2-tiny-s0.json").read_text()
    found, printed = json.loads(text), capsys.readouterr().out
    expected = json.loads(json.dumps(result)) | dict(finished=found["finished"])
    assert found == expected
    for place in (tmp_path, people, run.paths.model.parent): assert str(place) not in text
    assert found["sha256"] == hashlib.sha256(run.paths.model.read_bytes()).hexdigest()[:16]
    assert found["recipe"]["seed"] == 0 and found["recipe"]["variant"] == "PC2"
    assert found["images"] == 16 and {"code", "hardware", "packages", "data"} <= set(found)
    assert found["command"] == ("gcutmix_attention PC2-tiny-s0.safetensors "
                                "--dataset pedestrians --split query")
    assert "hat" in printed and "G and AC1" in printed


def test_a_mistake_on_the_command_line_is_one_line(monkeypatch, tmp_path):
    words = ["gcutmix_attention", str(tmp_path/"none.safetensors")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="^gcutmix_attention: no network"): gcutmix_attention()


def test_a_device_that_is_not_here_is_named(run, people):
    if torch.accelerator.is_available(): pytest.skip("there is an accelerator")
    with refused(RuntimeError, "device='cuda' was asked for"):
        measure(run.paths.model, root=people, device="cuda")


def test_another_data_set_never_takes_the_place_of_its_own(run, people, tmp_path):
    shutil.copytree(people, tmp_path/"photos")
    for words in (dict(root=people), dict(dataset="photos", root=tmp_path/"photos")):
        gcutmix_attention(run.paths.model, out=tmp_path/"new", **words)
    names = sorted(path.name for path in (tmp_path/"new").iterdir())
    assert names == ["attention-PC2-tiny-s0.json", "attention-photos-PC2-tiny-s0.json"]
    assert [r["dataset"] for r in read_attention(tmp_path/"new")] == ["pedestrians"]


def test_another_copy_of_the_data_set_is_refused(run, tmp_path):
    other = write_pedestrians(tmp_path/"people", train_ids=8, test_ids=8, images=4)
    with refused(ValueError, "on 16 people, pedestrians in .* has 8 to train on"):
        measure(run.paths.model, root=other)


def test_the_numbers_of_a_result(result):
    for shares in result["cues"]["share"].values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert sum(result["cues"]["area"].values()) == pytest.approx(1, abs=1e-3)
    pairs = [o["branches"] for o in result["overlap"]]
    assert pairs == [["G", "AC1"], ["G", "AC2"], ["AC1", "AC2"]]
    for o in result["overlap"]:
        assert all(0 <= o[key] <= 1 for key in ("maps", "blocks", "blocks_by_chance"))
    person, area = result["coverage"]["person"], result["coverage"]["area"]
    assert person["union"] >= max(person.values())
    assert area["union"] <= sum(area[name] for name in ("G", "AC1", "AC2")) + 1e-5
    assert list(result["occlusion"]) == list(CUES)
    assert result["occlusion"]["background"]["changed"] == 16
    whole = result["metrics"]["rank1"]
    for o in result["occlusion"].values():
        assert whole - 1 <= o["rank1_lost"] <= whole + 1e-6 and 0 <= o["changed"] <= 16


def test_the_metrics_are_those_of_the_run(result, run):
    assert result["metrics"]["rank1"] == pytest.approx(run.metrics.rank1)
    assert result["metrics"]["mAP"] == pytest.approx(run.metrics.mAP, abs=1e-6)


def test_a_cue_that_nobody_wears_costs_nothing(run, data):
    q = data.query
    bare = [i for i, pid in enumerate(q.pids) if random_person(0, int(pid)).bag[0] == "none"]
    q.paths, q.pids, q.camids = [q.paths[i] for i in bare], q.pids[bare], q.camids[bare]
    model, _ = open_network(run.paths.model)
    found = drop_cues(model, data, SIZE, ("bag",))["occlusion"]
    assert bare and found == dict(bag=dict(changed=0, rank1_lost=0, mAP_lost=0))


def test_training_people_have_their_own_class(run, data, people, tmp_path):
    gcutmix_attention(run.paths.model, root=people, split="train", out=tmp_path)
    found = json.loads((tmp_path/"attention-train-PC2-tiny-s0.json").read_text())
    assert (found["split"], found["images"], found["labels"]) == ("train", 64, "own class")
    (model, _), images = open_network(run.paths.model), pictures(data.train)
    own = overlaps(model, branch_maps(model, images, data.train.labels))
    assert found["overlap"] == own != overlaps(model, branch_maps(model, images))


def test_pictures_without_masks_give_overlaps_only(run, people, tmp_path):
    shutil.copytree(people, tmp_path/"photos")
    (tmp_path/"photos"/"pedestrians.json").unlink()
    found = measure(run.paths.model, "photos", tmp_path/"photos")
    assert not {"cues", "coverage", "occlusion"} & set(found) and len(found["overlap"]) == 3
    head, empty, *rest = attention_table(found).splitlines()[1:]
    assert head.split() == ["G", "AC1", "AC2"]
    assert empty.startswith("empty maps") and "overlap of maps" in rest[0]
    with refused(ValueError, "only drawn pedestrians"): plot_cues([found])


def test_what_is_no_network_is_refused(people, tmp_path):
    with refused(FileNotFoundError, "no network .*gcutmix_train writes"):
        measure(tmp_path/"none.safetensors", root=people)
    (tmp_path/"text.safetensors").write_text("no network")
    with refused(ValueError, "text.safetensors cannot be read"):
        measure(tmp_path/"text.safetensors", root=people)
    save_file({"w": torch.zeros(1)}, tmp_path/"foreign.safetensors")
    with refused(ValueError, "no recipe"): measure(tmp_path/"foreign.safetensors", root=people)
    save_model(create_model("G", 4, "tiny", dim=8), tmp_path/"bare.safetensors")
    with refused(ValueError, "does not name its dataset and size"):
        measure(tmp_path/"bare.safetensors", root=people)


def test_pictures_that_do_not_fit_are_refused(run, people, tmp_path):
    with refused(FileNotFoundError, "no data set 'market1501'"):
        measure(run.paths.model, "market1501", tmp_path)
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path/"empty"/folder).mkdir(parents=True)
    with refused(ValueError, "no image of a person"):
        measure(run.paths.model, "empty", tmp_path/"empty")
    with refused(ValueError, "'query' or 'train'"):
        measure(run.paths.model, root=people, split="gallery")
    four = tmp_path/"four.safetensors"
    save_model(create_model("G", 4, "tiny", dim=8), four, dataset="pedestrians", size=SIZE)
    with refused(ValueError, "trained on 4 people, pedestrians in .* has 16"):
        measure(four, root=people)
    with refused(ValueError, "trained on 4 people, people has 16"):
        measure(four, "people", people, split="train")


def test_a_network_that_mixes_nothing_is_refused():
    with refused(ValueError, "mixes nothing"):
        mix_stages(create_model("BDB3", 4, "tiny", dim=8), None, None)


def test_results_that_do_not_belong_together_are_refused(result):
    with refused(ValueError, "2 sets of pictures"):
        by_variant([result, result | dict(split="train")])
    older = {key: value for key, value in result["recipe"].items() if key != "k"}
    with refused(ValueError, "differ in k"): by_variant([result, result | dict(recipe=older)])


def test_pictures_of_a_different_version(run, people, tmp_path):
    shutil.copytree(people, tmp_path/"people")
    first = sorted((tmp_path/"people"/"query").iterdir())[0]
    Image.new("RGB", (32, 96)).save(first)
    with refused(ValueError, "a different version; draw it anew"):
        measure(run.paths.model, root=tmp_path/"people")


@pytest.fixture
def network(run): return open_network(run.paths.model)[0]


@pytest.fixture
def alone(result):
    "A result of G."
    return result | dict(recipe=result["recipe"] | dict(variant="G"), branches=["G"])


def is_small(figure, path):
    save_figure(figure, path)
    assert path.stat().st_size < 150_000


def test_figures_of_networks_are_small(network, data, tmp_path):
    images, labels = pictures(data.train), torch.as_tensor(data.train.labels)
    is_small(plot_mix(network, images[:16], labels[:16], anchor=5), tmp_path/"mix.png")
    is_small(plot_attention(network, images[:8:2], labels[:8:2]), tmp_path/"attention.png")
    is_small(plot_attention(network, images[:1]), tmp_path/"single.png")
    is_small(plot_ranked(network, data, SIZE, n=1), tmp_path/"ranked.png")


def test_figures_of_results_show_every_seed(result, alone, tmp_path):
    figure = plot_cues([result, result, alone])
    # the line at 1, and for each branch the dots of two runs
    assert [len(ax.lines) for ax in figure.axes] == [1, 4]
    is_small(figure, tmp_path/"cues.png")
    is_small(plot_cues([alone]), tmp_path/"one.png")
    is_small(plot_occlusion([result, result, alone]), tmp_path/"occlusion.png")


def test_a_cue_that_no_picture_has_and_a_branch_without_maps(result):
    bald = json.loads(json.dumps(result))
    bald["cues"]["area"]["hat"], bald["cues"]["share"]["AC1"] = 0, dict.fromkeys(SCENE)
    ax = plot_cues([bald]).axes[0]
    heights = np.array([bar.get_height() for bar in ax.patches]).reshape(3, -1)
    assert len(ax.get_xticks()) == heights.shape[1] == len(SCENE) - 1
    assert np.isnan(heights[1]).all() and not np.isnan(heights[[0, 2]]).any()


def test_a_setting_that_came_later_does_not_part_old_from_new():
    old = dict(recipe=dict(variant="G", seed=0))
    new = dict(recipe=dict(variant="G", seed=1, random_erasing=0.))
    check_recipes("G", [old, new])
    new["recipe"]["random_erasing"] = .5
    with pytest.raises(ValueError, match="differ in random_erasing"):
        check_recipes("G", [old, new])
