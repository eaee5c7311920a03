"The network of Fig. 1: what the model chapter does not show."
import pytest
import torch
import torchvision
from torch import nn

from conftest import ROOT
from gcutmix.base.weights import write_network
from gcutmix.blocks import block_mask
from gcutmix.config import Options
from gcutmix.cutmix import attention, mix
from gcutmix.data import load_dataset
from gcutmix.gradcam import grad_cam
from gcutmix.images import keyed_generator, load_images, normalize
from gcutmix.model import Head, check_map, create_backbone, create_model, load_model, save_model
from gcutmix.variants import VARIANTS


@pytest.fixture(scope="module")
def batch(people):
    "Images (64,3,96,32) and their labels."
    train = load_dataset("pedestrians", people).train
    images = load_images(train, (96, 32), progress=False)
    return normalize(images), torch.tensor(train.labels)


def network(variant="PC2", **options):
    torch.manual_seed(0)
    return create_model(variant, 16, "tiny", dim=64, **options)


def test_without_our_stride_the_map_is_a_quarter():
    layers = list(torchvision.models.resnet50().children())[:-2]
    whole = nn.Sequential(*layers).eval()
    photo = torch.zeros(1, 3, 384, 128)
    with torch.inference_mode():
        assert whole(photo).shape == (1, 2048, 12, 4)
        assert create_backbone("resnet50").eval()(photo).shape == (1, 2048, 24, 8)


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="expected one of resnet18"): create_backbone("vgg16")
    with pytest.raises(ValueError, match="expected one of G, BDB"): network("PC9")
    with pytest.raises(ValueError, match="unknown option 'blocks'"): network(blocks=8)
    with pytest.raises(ValueError, match="expected one of sample, batch"):
        network(cam_grad="Batch")


def test_closed_form_equals_autograd():
    torch.manual_seed(0)
    head, labels = Head(128, 32, 10).eval(), torch.arange(6)
    pooled = torch.rand(6, 128, requires_grad=True)
    embedding, logits = head(pooled)
    expected, = torch.autograd.grad(logits[range(6), labels].sum(), pooled)
    found = head.score_gradient(pooled, embedding, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_attention_equals_autograd_on_the_map(batch):
    images, labels = batch
    step = network().eval().steps(images, labels)[0]
    expected = grad_cam(step.features, step.logits[range(64), labels])
    torch.testing.assert_close(attention(step, labels), expected, rtol=1e-5, atol=1e-5)


def test_masks_of_training_are_not_those_of_evaluation(batch):
    images, labels = batch
    model = network()
    steps = model(images, labels, keyed_generator(0))
    model.eval()
    for looking, hidden in zip(steps, steps[1:]):
        assert (hidden.mask != block_mask(attention(looking, labels), 8)).any()


def test_every_hidden_cell_belongs_to_a_negative(batch):
    "From outside: find the owners of every cell."
    images, labels = batch
    model = network()
    shared = model.bottleneck(model.backbone(images))
    step = model(images, labels, keyed_generator(0))[1]
    own = (step.features == shared).all(1, keepdim=True)
    assert (own | (step.mask == 0)).all()
    for i in range(64):
        hidden = step.mask[i, 0] == 0
        same = (step.features[i] == shared).all(1)[:, hidden].all(1)
        owners = same.nonzero().flatten()
        assert len(owners) and (labels[owners] != labels[i]).all()


@pytest.mark.parametrize("way", ["sample", "batch"])
def test_looking_leaves_no_trace(batch, way):
    "No gradient, one update of the running statistics; AC1's loss does not reach G's head."
    model = network(cam_grad=way)
    steps = model(*batch, keyed_generator(0))
    assert all(p.grad is None for p in model.parameters())
    assert [head.norm.num_batches_tracked for head in model.heads] == [1, 1, 1]
    steps[1].embedding.sum().backward()
    assert all(p.grad is None for p in model.heads[0].parameters())
    assert model.backbone[0][0].weight.grad.abs().sum() > 0


def test_accumulated_blocks_stay_replaced(batch):
    model = network(accumulate=True)
    first, second = (step.mask for step in model(*batch, keyed_generator(0))[1:])
    assert (second <= first).all()
    assert (second == 0).sum((1, 2, 3)).unique().tolist() == [2*8*6]


@pytest.mark.parametrize("detach, cells", [(False, 192), (True, 144)])
def test_detached_partners_get_no_gradient(batch, detach, cells):
    "Then a loss reaches the map through the seen cells only, not through those pasted elsewhere."
    maps = torch.randn(64, 128, 24, 8, requires_grad=True)
    hole, options = block_mask(torch.rand(64, 24, 8), 8), Options(detach_partner=detach)
    mixed, *_ = mix(maps, hole, batch[1], keyed_generator(0), options)
    gradient, = torch.autograd.grad(mixed.sum(), maps)
    assert gradient[:, 0].sum() == 64*cells


def test_a_map_that_is_replaced_as_a_whole_is_an_error(batch):
    images, labels = batch
    with pytest.raises(ValueError, match="the whole 12x4 map"):
        network()(images[:, :, ::2, ::2], labels, keyed_generator(0))
    twice = network(k=16, accumulate=True) # AC2 would keep AC1's 16 blocks replaced
    with pytest.raises(ValueError, match="32 blocks of 3x2 are the whole 24x8 map"):
        twice(images, labels, keyed_generator(0))


def test_labels_are_needed_to_look(batch):
    with pytest.raises(ValueError, match="pass the labels"): network()(batch[0])


def test_check_map():
    with pytest.raises(ValueError, match="the whole 30x10 map"):
        check_map(network(k=50), (120, 40))
    with pytest.raises(ValueError, match="25 must be a multiple of 3"):
        check_map(network("PC1", k=6), (100, 32))
    fits = network("BDB3", k=99) # drops a rectangle of any map
    check_map(fits, (100, 32))
    assert fits.training and not fits.backbone[0][1].num_batches_tracked # no statistic has moved


def test_a_saved_network_comes_back(batch, tmp_path):
    "Also from channels_last, and from a version that did not know `partner`."
    model, file = network().eval(), tmp_path/"pc2.safetensors"
    save_model(model.to(memory_format=torch.channels_last), file, size=(96, 32), variant="other")
    again, recipe = load_model(file)
    with torch.inference_mode():
        torch.testing.assert_close(again(batch[0]), model(batch[0]), rtol=1e-4, atol=1e-4)
    assert (recipe["variant"], recipe["size"], recipe["k"]) == ("PC2", [96, 32], 8)
    older = {key: value for key, value in recipe.items() if key != "partner"}
    write_network(tmp_path/"older.safetensors", again.state_dict(), **older)
    assert load_model(tmp_path/"older.safetensors")[1] == recipe
    del older["backbone"]
    write_network(file, again.state_dict(), **older)
    with pytest.raises(ValueError, match="pc2.safetensors lacks backbone; expected a file"):
        load_model(file)


@pytest.mark.parametrize("variant", ["G", "PC2", "BDB3"])
def test_stored_networks_know_their_people(batch, variant):
    "Those of the study were trained on 150 people, and our sixteen are the first of them."
    images, labels = batch
    stored = ROOT/"results"/"pedestrians"/f"{variant}-tiny-s0.safetensors"
    model, recipe = load_model(stored)
    assert recipe["variant"] == variant and not model.training
    assert [b.name for b in model.branches] == [b.name for b in VARIANTS[variant].branches]
    with torch.inference_mode(): steps = model.steps(images)
    for step in steps: assert (step.logits.argmax(1) == labels).float().mean() > .9
