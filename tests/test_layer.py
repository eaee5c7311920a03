"The layer and the branches in surroundings that other people's code has."
import subprocess

import pytest
import torch
import torchvision
from torch import nn

from gcutmix.images import keyed_generator
from gcutmix.layer import FeatureCutMix, add_branches

MODELS = torchvision.models
LABELS = torch.arange(4)


class Classifier(nn.Module):
    "Somebody's network with the layer in it."
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU())
        self.mix, self.classify = FeatureCutMix(), nn.Linear(8, 4)

    def forward(self, images, labels=None):
        features = self.conv(images)
        pooled = features.mean((2, 3))
        if self.training:
            features = self.mix(features, labels, (pooled, self.classify))
        return self.classify(features.mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Classifier()


IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def drawn(net, images=IMAGES):
    torch.manual_seed(1)
    return net(images, LABELS)


def test_what_surrounds_it_compiles(net):
    compiled = torch.compile(net, backend="aot_eager") # the whole autograd of it, no C++ compiler
    torch.testing.assert_close(drawn(compiled), drawn(net))
    compiled(IMAGES, LABELS).sum().backward()
    assert net.conv[0].weight.grad.abs().sum() > 0


def test_channels_last_gives_the_same(net):
    right = drawn(net)
    net.to(memory_format=torch.channels_last)
    found = drawn(net, IMAGES.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, right)


def test_autocast_mixes_whole_blocks(net):
    with torch.autocast("cpu", torch.bfloat16):
        features = net.conv(IMAGES)
        pooled = features.mean((2, 3))
        looked = pooled, net.classify(pooled)
        mixed = net.mix(features, LABELS, looked, keyed_generator(0), details=True)
        net(IMAGES, LABELS).float().sum().backward()
    assert mixed.features.dtype == features.dtype == torch.bfloat16
    assert mixed.mask.mean() == .75
    right = torch.where(mixed.mask.bool(), features, features[mixed.partners])
    assert torch.equal(mixed.features, right)


def test_it_exports_in_evaluation(net):
    net.eval()
    program = torch.export.export(net, (IMAGES,))
    torch.testing.assert_close(program.module()(IMAGES), net(IMAGES))


def test_branches_export_in_evaluation():
    net = add_branches(MODELS.resnet18(), 4, size=(64, 64), dim=8).eval()
    program = torch.export.export(net, (IMAGES,))
    torch.testing.assert_close(program.module()(IMAGES), net(IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0",
                                  "convnext_tiny", "regnet_y_400mf", "swin_t"])
def test_branches_stand_on_every_family(name):
    net = add_branches(MODELS.get_model(name), 4, size=(128, 128), dim=8)
    steps = net(torch.randn(4, 3, 128, 128), LABELS)
    sum(step.logits.logsumexp(1).sum() for step in steps).backward()
    assert [step.logits.shape for step in steps] == [(4, 4)]*3
    first = next(net.backbone.parameters())
    assert first.grad.abs().sum() > 0
    with torch.no_grad(): assert net.eval()(torch.randn(2, 3, 128, 128)).shape == (2, 4)
    assert all(0 < float(1 - step.mask.mean()) < 1 for step in steps[1:])


HALF = """
import os, torch, torch.distributed as dist
from gcutmix.base.processes import part, sharing
from gcutmix.layer import FeatureCutMix
dist.init_process_group("gloo")
torch.manual_seed(0)
layer, labels, k = FeatureCutMix(), torch.arange(8)//2, torch.Generator
maps, heat = torch.randn(8, 6, 6, 4, requires_grad=True), torch.rand(8, 6, 4)
whole = layer(maps, labels, heat, k().manual_seed(1), details=True)
wanted, = torch.autograd.grad((whole.features**2).sum(), maps)
with sharing(int(os.environ["RANK"]), 2):
    half = part(maps).detach().requires_grad_()
    mixed = layer(half, part(labels), part(heat), k().manual_seed(1), details=True)
    found, = torch.autograd.grad((mixed.features**2).sum(), half)
    for here, there in zip(mixed, whole): assert torch.equal(here, part(there))
    assert torch.allclose(found, part(wanted))
    assert not torch.equal(mixed.partners % 4, mixed.partners) # some come from the other one
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_mix_as_one(tmp_path):
    "Masks, partners and maps, and the gradient that goes back to whoever lent a block."
    (tmp_path/"half.py").write_text(HALF)
    line = ["torchrun", "--standalone", "--nproc_per_node", "2", str(tmp_path/"half.py")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
