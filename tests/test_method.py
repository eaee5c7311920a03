"The method against code that we did not write: captum, grad-cam, torchcam, pytorch-metric-learning; and against properties."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from gcutmix.blocks import block_mask, block_scores
from gcutmix.cutmix import batch_dropblock, feature_cutmix, partner_matrix, sample_partners
from gcutmix.gradcam import grad_cam, pooled_grad_cam
from gcutmix.losses import batch_hard_triplet
from gcutmix.model import BACKBONES, create_backbone, create_model
from gcutmix.samplers import PKSampler


class GlobalBranch(nn.Module):
    "Branch G of a model as the plain classifier that CAM libraries expect: images -> logits."
    def __init__(self, model):
        super().__init__()
        self.backbone, self.head = model.backbone, model.heads[0]

    def forward(self, images): return self.head(self.backbone(images).mean((2, 3)))[1]


@pytest.fixture(scope="module", params=["tiny", "resnet18", "mobilenet_v2"])
def branch(request):
    torch.manual_seed(0)
    return create_model("G", 10, request.param, dim=32).eval()


def our_map(model, images, labels):
    step, = model.steps(images, labels)
    return grad_cam(step.features, step.logits.gather(1, labels[:, None])[:, 0])


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(3, 3, 96, 32), torch.tensor([2, 7, 7])


def test_equals_captum(branch, batch):
    from captum.attr import LayerGradCam
    net = GlobalBranch(branch).eval()
    theirs = LayerGradCam(net, net.backbone).attribute(batch[0], target=batch[1], relu_attributions=True)[:, 0]
    torch.testing.assert_close(our_map(branch, *batch), theirs.detach(), rtol=1e-4, atol=1e-6)


def test_equals_torchcam(branch, batch):
    from torchcam.methods import GradCAM
    net = GlobalBranch(branch).eval()
    with GradCAM(net, target_layer=net.backbone) as cam:
        scores = net(batch[0].clone().requires_grad_())
        theirs, = cam(batch[1].tolist(), scores, normalized=False)
    torch.testing.assert_close(our_map(branch, *batch), theirs.detach().relu(), rtol=1e-4, atol=1e-6)


def test_equals_grad_cam(branch, batch):
    "Its public map is ours, scaled to 0..1, resized bilinearly, and scaled again."
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    net = GlobalBranch(branch).eval()
    with GradCAM(model=net, target_layers=[net.backbone]) as cam:
        theirs = cam(input_tensor=batch[0], targets=[ClassifierOutputTarget(int(y)) for y in batch[1]])
    def scaled(x):
        x = x - x.amin((-2, -1), keepdim=True)
        return x / (1e-7 + x.amax((-2, -1), keepdim=True))
    ours = nn.functional.interpolate(scaled(our_map(branch, *batch))[:, None], (96, 32), mode="bilinear")[:, 0]
    np.testing.assert_allclose(scaled(ours).numpy(), theirs, atol=1e-4)


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("training", [False, True])
def test_the_three_ways_choose_the_same_blocks(pool, training):
    "Autograd on the map, the pooled identity, and (in evaluation mode) the closed form."
    torch.manual_seed(0)
    model = create_model("PC2", 20, "tiny", dim=64).train(training)
    features, labels = torch.randn(8, 128, 24, 8).relu().requires_grad_(), torch.arange(8)
    pooled = features.mean((2, 3)) if pool == "avg" else features.amax((2, 3))
    embedding, logits = model.heads[1](pooled)
    score = logits.gather(1, labels[:, None])[:, 0]
    on_map = grad_cam(features, score)
    torch.testing.assert_close(pooled_grad_cam(features, pooled, score), on_map)
    if not training:
        from gcutmix.gradcam import class_activation_map
        closed = class_activation_map(features, model.heads[1].score_gradient(pooled, embedding, labels)/192)
        torch.testing.assert_close(closed, on_map)
        for k in range(1, 32): assert torch.equal(block_mask(closed, k), block_mask(on_map, k))


maps = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000))


@settings(max_examples=60, deadline=None)
@given(maps)
def test_masks_cut_the_k_best_blocks_with_ties_by_index(sizes):
    n, rows, cols, bh, bw, seed = sizes
    cam = torch.randint(0, 3, (n, rows*bh, cols*bw), generator=torch.Generator().manual_seed(seed)).float()
    scores = block_scores(cam, (bh, bw)).flatten(1)
    k = seed % (rows*cols + 1)
    mask = block_mask(cam, k, (bh, bw))
    cut = (block_scores(mask[:, 0], (bh, bw)) == 0).flatten(1)
    for i in range(n):
        best = sorted(range(rows*cols), key=lambda j: (-scores[i, j].item(), j))[:k]
        assert cut[i].nonzero().flatten().tolist() == sorted(best)
    assert ((mask == 0).sum((1, 2, 3)) == k*bh*bw).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=20), st.sampled_from(["negative", "positive", "any"]), st.integers(0, 1000))
def test_partners_are_who_they_should_be(pids, mode, seed):
    pids = torch.tensor(pids)
    allowed = partner_matrix(pids, mode)
    if not allowed.any(1).all():
        with pytest.raises(ValueError, match=f"no {mode} partner"): sample_partners(pids, mode)
        return
    partners = sample_partners(pids, mode, torch.Generator().manual_seed(seed))
    assert (partners != torch.arange(len(pids))).all()
    if mode == "negative": assert (pids[partners] != pids).all()
    if mode == "positive": assert (pids[partners] == pids).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=4, max_size=24), st.integers(0, 1000))
def test_triplet_equals_pytorch_metric_learning(pids, seed):
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner
    from pytorch_metric_learning.reducers import MeanReducer
    plain = LpDistance(normalize_embeddings=False)
    theirs = TripletMarginLoss(margin=0, smooth_loss=True, distance=plain, reducer=MeanReducer())
    pids, vectors = torch.tensor(pids), torch.randn(len(pids), 6, generator=torch.Generator().manual_seed(seed))
    a, b = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    same = pids[:, None] == pids
    if not ((same.sum(1) > 1) & (~same).any(1)).any():
        with pytest.raises(ValueError, match="no triplet"): batch_hard_triplet(a, pids)
        return
    ours, witness = batch_hard_triplet(a, pids), theirs(b, pids, BatchHardMiner(distance=plain)(b, pids))
    torch.testing.assert_close(ours, witness)
    ours.backward(), witness.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_mixing_equals_the_weighted_sum_of_eq_3():
    a, b = torch.randn(2, 4, 5, 24, 8)
    mask = (torch.rand(4, 1, 24, 8) > .5).float()
    torch.testing.assert_close(feature_cutmix(a, b, mask), mask*a + (1 - mask)*b)


def test_dropblock_takes_a_third():
    dropped = batch_dropblock(torch.ones(2, 3, 12, 4), generator=torch.Generator().manual_seed(0))
    assert (dropped == 0).float().mean() == pytest.approx(1/3)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_backbones_keep_a_large_map(name):
    h, w = (24, 8) if name == "tiny" else (6, 2)
    with torch.inference_mode(): assert create_backbone(name).eval()(torch.zeros(1, 3, 96, 32)).shape[2:] == (h, w)


def test_blocks_that_do_not_divide_the_map_are_an_error_in_training():
    model = create_model("PC2", 8, "resnet18", dim=16) # a 96x32 image gives a 6x2 map; 4x2 blocks do not divide it
    model.options = type(model.options)(dim=16, block=(4, 2), k=1)
    with pytest.raises(ValueError, match="6x2 map cannot be cut into blocks of 4x2"):
        model(torch.randn(8, 3, 96, 32), torch.arange(4).repeat_interleave(2))


def test_one_identity_is_an_error():
    with pytest.raises(ValueError, match="no negative partner"): create_model("PC2", 8, "tiny")(torch.randn(4, 3, 96, 32), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="no triplet"): batch_hard_triplet(torch.randn(4, 8), [3]*4)
    with pytest.raises(ValueError, match="the data have 1"): PKSampler([3]*4)


def test_paper_counts():
    "Design figures of the paper's network: 32.3 million parameters with three heads on CUHK03."
    model = create_model("PC2", 767)
    assert sum(p.numel() for p in model.parameters())/1e6 == pytest.approx(32.3, abs=.05)
    with torch.inference_mode(): assert model.eval()(torch.zeros(1, 3, 384, 128)).shape == (1, 1536)
