"""The method against code that we did not write: captum, grad-cam, torchcam,
pytorch-metric-learning; and against properties."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from gcutmix import blocks, cutmix, evaluation, gradcam, images, losses, samplers
from gcutmix.base import rerank
from gcutmix.base.rerank import mutual_neighbours, reranked
from gcutmix.blocks import block_mask, block_scores
from gcutmix.config import Options
from gcutmix.cutmix import (attention, batch_dropblock, blind_drop, cut_blocks, feature_cutmix,
                            guided_cutmix, guided_mask, mix, partner_matrix, random_cutmix,
                            sample_partners)
from gcutmix.data import Split
from gcutmix.evaluation import distance_to, evaluate, extract_features, ranked_list, summarize
from gcutmix.gradcam import class_activation_map, grad_cam, head_gradient, pooled_grad_cam
from gcutmix.images import (augment, cutout, keyed_generator, load_images, normalize, random_crop,
                            random_erasing, random_flip, to_device)
from gcutmix.losses import batch_hard_triplet, branch_losses, pairwise_distance
from gcutmix.model import BACKBONES, Step, create_backbone, create_model
from gcutmix.samplers import PKSampler
from gcutmix.study.maps import branch_maps


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


def by_autograd(step, labels):
    return grad_cam(step.features, step.logits.gather(1, labels[:, None])[:, 0])


def our_map(model, images, labels):
    step, = model.steps(images, labels)
    return by_autograd(step, labels)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(3, 3, 96, 32), torch.tensor([2, 7, 7])


def test_equals_captum(branch, batch):
    from captum.attr import LayerGradCam
    net = GlobalBranch(branch).eval()
    images, labels = batch
    cam = LayerGradCam(net, net.backbone)
    theirs = cam.attribute(images, target=labels, relu_attributions=True)[:, 0].detach()
    torch.testing.assert_close(our_map(branch, *batch), theirs, rtol=1e-4, atol=1e-6)


def test_equals_torchcam(branch, batch):
    from torchcam.methods import GradCAM
    net = GlobalBranch(branch).eval()
    with GradCAM(net, target_layer=net.backbone) as cam:
        scores = net(batch[0].clone().requires_grad_())
        theirs, = cam(batch[1].tolist(), scores, normalized=False)
    theirs = theirs.detach().relu()
    torch.testing.assert_close(our_map(branch, *batch), theirs, rtol=1e-4, atol=1e-6)


def test_equals_grad_cam(branch, batch):
    "Its public map is ours, scaled to 0..1, resized bilinearly, and scaled again."
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    net = GlobalBranch(branch).eval()
    targets = [ClassifierOutputTarget(int(y)) for y in batch[1]]
    with GradCAM(model=net, target_layers=[net.backbone]) as cam:
        theirs = cam(input_tensor=batch[0], targets=targets)

    def scaled(x):
        x = x - x.amin((-2, -1), keepdim=True)
        return x / (1e-7 + x.amax((-2, -1), keepdim=True))

    ours = scaled(our_map(branch, *batch))[:, None]
    ours = nn.functional.interpolate(ours, (96, 32), mode="bilinear")[:, 0]
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
        gradient = model.heads[1].score_gradient(pooled, embedding, labels)
        closed = class_activation_map(features, gradient/192)
        torch.testing.assert_close(closed, on_map)
        for k in range(1, 32): assert torch.equal(block_mask(closed, k), block_mask(on_map, k))


few, small = st.integers(1, 4), st.integers(1, 6)
maps = st.tuples(few, small, small, few, few, st.integers(0, 10_000))
modes = st.sampled_from(["negative", "positive", "any"])


@settings(max_examples=60, deadline=None)
@given(maps)
def test_masks_cut_the_k_best_blocks_with_ties_by_index(sizes):
    n, rows, cols, bh, bw, seed = sizes
    rng = torch.Generator().manual_seed(seed)
    cam = torch.randint(0, 3, (n, rows*bh, cols*bw), generator=rng).float()
    scores = block_scores(cam, (bh, bw)).flatten(1)
    k = seed % (rows*cols + 1)
    mask = block_mask(cam, k, (bh, bw))
    cut = (block_scores(mask[:, 0], (bh, bw)) == 0).flatten(1)
    for i in range(n):
        best = sorted(range(rows*cols), key=lambda j: (-scores[i, j].item(), j))[:k]
        assert cut[i].nonzero().flatten().tolist() == sorted(best)
    assert ((mask == 0).sum((1, 2, 3)) == k*bh*bw).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=20), modes, st.integers(0, 1000))
def test_partners_are_who_they_should_be(pids, mode, seed):
    pids = torch.tensor(pids)
    allowed = partner_matrix(pids, mode)
    if not allowed.any(1).all():
        with pytest.raises(ValueError, match=f"no {mode} partner"):
            sample_partners(pids, mode)
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
    rng = torch.Generator().manual_seed(seed)
    pids, vectors = torch.tensor(pids), torch.randn(len(pids), 6, generator=rng)
    a, b = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    same = pids[:, None] == pids
    if not ((same.sum(1) > 1) & (~same).any(1)).any():
        with pytest.raises(ValueError, match="no triplet"): batch_hard_triplet(a, pids)
        return
    mined = BatchHardMiner(distance=plain)(b, pids)
    ours, witness = batch_hard_triplet(a, pids), theirs(b, pids, mined)
    torch.testing.assert_close(ours, witness)
    ours.backward(), witness.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_mixing_equals_the_weighted_sum_of_eq_3():
    a, b = torch.randn(2, 4, 5, 24, 8)
    mask = (torch.rand(4, 1, 24, 8) > .5).float()
    torch.testing.assert_close(feature_cutmix(a, b, mask), mask*a + (1 - mask)*b)


@pytest.fixture
def crowd():
    "Eight people with two pictures each."
    torch.manual_seed(1)
    return torch.randn(16, 3, 96, 32), torch.arange(8).repeat_interleave(2)


@pytest.mark.parametrize("cam_grad, training",
                         [("sample", False), ("batch", False), ("batch", True)])
def test_guided_mask_is_the_block_mask_of_grad_cam(cam_grad, training, crowd):
    torch.manual_seed(0)
    images, labels = crowd
    model = create_model("PC2", 8, "tiny", dim=16, cam_grad=cam_grad).train(training)
    for step in model.steps(images, labels, keyed_generator(0)):
        cam = by_autograd(step, labels)
        torch.testing.assert_close(attention(step, labels, cam_grad), cam)
        assert torch.equal(guided_mask(step, labels, model.options), block_mask(cam, 8))


def test_branches_see_what_the_step_before_decides(crowd):
    "The masks of a forward pass, again by hand; accumulated, AC2 keeps what AC1 got."
    torch.manual_seed(0)
    images, labels = crowd
    model = create_model("PC2", 8, "tiny", dim=16)
    for options, blocks in ((Options(dim=16), 8), (Options(dim=16, accumulate=True), 16)):
        model.options = options
        _, first, second = steps = model.steps(images, labels, keyed_generator(0))
        for before, step in zip(steps, steps[1:]):
            assert torch.equal(step.mask, guided_mask(before, labels, options))
        assert ((first.mask == 0).sum((1, 2, 3)) == 8*6).all()
        assert ((second.mask == 0).sum((1, 2, 3)) == blocks*6).all()
    assert (second.mask <= first.mask).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=12), modes, st.booleans(),
       st.integers(0, 99))
def test_hidden_cells_come_from_one_allowed_partner(pids, mode, detach, seed):
    "A map that says in each cell which image it belongs to."
    labels = torch.tensor(pids)
    allowed = partner_matrix(labels, mode)
    if not allowed.any(1).all(): return
    mask = (torch.rand(len(pids), 1, 6, 4, generator=keyed_generator(seed)) > .5).float()
    whose = torch.arange(len(pids)).view(-1, 1, 1, 1)*torch.ones(len(pids), 1, 6, 4)
    whose.requires_grad_()
    options = Options(partner=mode, detach_partner=detach)
    mixed, _, partners = mix(whose, mask, labels, keyed_generator(seed), options)
    for i, (row, seen) in enumerate(zip(mixed.detach()[:, 0], mask[:, 0] == 1)):
        assert (row[seen] == i).all()
        hidden = row[~seen].long().unique()
        assert hidden.tolist() in ([], [partners[i]]) and allowed[i, partners[i]]
    gradient, = torch.autograd.grad(mixed.sum(), whose)
    if detach: assert torch.equal(gradient, mask)
    else: assert gradient.sum() == mask.numel()


def test_interferences_are_their_parts(crowd):
    images, labels = crowd
    model = create_model("PC2", 8, "tiny", dim=16).eval()
    with torch.no_grad(): G, AC1, _ = model.steps(images)
    features, options = AC1.features, model.options
    found = guided_cutmix(features, G, labels, keyed_generator(0), options)
    mask = guided_mask(G, labels, options)
    expected = mix(features, mask, labels, keyed_generator(0), options)
    for a, b in zip(found, expected, strict=True): assert torch.equal(a, b)
    assert torch.equal(found[1], mask)
    dropped, none = blind_drop(features, G, None, keyed_generator(0), options)
    assert torch.equal(dropped, batch_dropblock(features, generator=keyed_generator(0)))
    assert none is None


@pytest.mark.parametrize("cam_grad", ["sample", "batch"])
def test_looking_without_labels_is_an_error(cam_grad, crowd):
    model = create_model("PC2", 8, "tiny", dim=16, cam_grad=cam_grad)
    with pytest.raises(ValueError, match="pass the labels"): model(crowd[0])


@pytest.mark.parametrize("options, blocks", [(dict(k=32), 32), (dict(k=16, accumulate=True), 32),
                                             (dict(k=2, block=(12, 8)), 2)])
def test_blocks_that_fill_the_map_are_an_error(options, blocks, crowd):
    model = create_model("PC2", 8, "tiny", dim=16, **options)
    with pytest.raises(ValueError, match=f"k = {blocks} blocks of .* are the whole 24x8 map"):
        model(*crowd, keyed_generator(0))


def test_dropblock_takes_a_third():
    dropped = batch_dropblock(torch.ones(2, 3, 12, 4), generator=torch.Generator().manual_seed(0))
    assert (dropped == 0).float().mean() == pytest.approx(1/3)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_backbones_keep_a_large_map(name):
    h, w = (24, 8) if name == "tiny" else (6, 2)
    backbone = create_backbone(name).eval()
    with torch.inference_mode(): assert backbone(torch.zeros(1, 3, 96, 32)).shape[2:] == (h, w)


def test_blocks_that_do_not_divide_the_map_are_an_error_in_training():
    # a 96x32 image gives a 6x2 map; 4x2 blocks do not divide it
    model = create_model("PC2", 8, "resnet18", dim=16, block=(4, 2), k=1)
    with pytest.raises(ValueError, match="6x2 map cannot be cut into blocks of 4x2"):
        model(torch.randn(8, 3, 96, 32), torch.arange(4).repeat_interleave(2))


def test_one_identity_is_an_error():
    model, labels = create_model("PC2", 8, "tiny"), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="no negative partner"):
        model(torch.randn(4, 3, 96, 32), labels)
    with pytest.raises(ValueError, match="no triplet"): batch_hard_triplet(torch.randn(4, 8), [3]*4)
    with pytest.raises(ValueError, match="the data have 1"): PKSampler([3]*4)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("image", range(4))
def test_dropblock_and_the_triplet_loss_meet_what_is_not_finite(value, image):
    "Nothing is left in the hole, and nothing is hidden in the loss; image 3 has no positive."
    features = torch.full((4, 2, 6, 4), value)
    assert not batch_dropblock(features, 1., 1.).any()
    dropped = batch_dropblock(features, generator=keyed_generator(0))
    assert ((dropped == 0).sum((2, 3)) == 8).all() and not dropped[dropped != 0].isfinite().any()
    embeddings = torch.randn(4, 8)
    assert batch_hard_triplet(embeddings, [0, 0, 1, 2]).isfinite()
    embeddings[image, 3] = value
    assert not batch_hard_triplet(embeddings, [0, 0, 1, 2]).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_grad_cam_is_never_less_than_float32(dtype):
    torch.manual_seed(0)
    features = torch.rand(3, 8, 6, 4).to(dtype).requires_grad_()
    pooled = features.mean((2, 3))
    score = (pooled.square()*torch.arange(8)).sum(1)
    for cam in (grad_cam(features, score), pooled_grad_cam(features, pooled, score)):
        assert cam.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        weights = 2*pooled.double()*torch.arange(8)/24
        exact = torch.einsum("nc,nchw->nhw", weights, features.double()).relu()
        torch.testing.assert_close(cam.double(), exact, atol=0, rtol=1e-12 if cam.dtype == dtype
                                   else 2e-2)


def empty(*shape): return torch.zeros(0, *shape)


@pytest.fixture(scope="module")
def nothing():
    "A step of branch G on no image."
    head = create_model("G", 4, "tiny", dim=8).heads[0].eval()
    pooled = empty(128).requires_grad_()
    return Step(empty(16, 24, 8), pooled, empty(8), pooled[:, :4], head=head)


MAPS, EVEN, NOBODY = empty(16, 24, 8), torch.ones(4, 24, 8), torch.zeros(0, dtype=torch.long)
OPTIONS, NO_MASK, KEY = Options(dim=8), empty(1, 24, 8), keyed_generator(0)
PICTURES = torch.zeros(0, 3, 24, 8, dtype=torch.uint8)
SIDE = torch.ones(2, 3), [0, 1], [0, 1]
EMPTY = dict(
    class_activation_map=lambda s: class_activation_map(MAPS, empty(16)),
    grad_cam=lambda s: grad_cam(MAPS.requires_grad_(), MAPS.sum((1, 2, 3))),
    pooled_grad_cam=lambda s: pooled_grad_cam(MAPS, (p := MAPS.mean((2, 3))), p.sum(1)),
    head_gradient=lambda s: head_gradient(empty(8), torch.ones(8, 128), torch.ones(8), empty(8)),
    block_scores=lambda s: block_scores(empty(24, 8)),
    block_mask=lambda s: block_mask(empty(24, 8), 2),
    feature_cutmix=lambda s: feature_cutmix(MAPS, MAPS, NO_MASK),
    partner_matrix=lambda s: partner_matrix(NOBODY),
    sample_partners=lambda s: sample_partners(NOBODY),
    batch_dropblock=lambda s: batch_dropblock(MAPS),
    attention=lambda s: attention(s, NOBODY),
    attention_batch=lambda s: attention(s, NOBODY, "batch"),
    cut_blocks=lambda s: cut_blocks(empty(24, 8), s, OPTIONS),
    guided_mask=lambda s: guided_mask(s, NOBODY, OPTIONS),
    mix=lambda s: mix(MAPS, NO_MASK, NOBODY, KEY, OPTIONS),
    guided_cutmix=lambda s: guided_cutmix(MAPS, s, NOBODY, KEY, OPTIONS),
    random_cutmix=lambda s: random_cutmix(MAPS, s, NOBODY, KEY, OPTIONS),
    blind_drop=lambda s: blind_drop(MAPS, s, None, KEY, OPTIONS),
    pairwise_distance=lambda s: pairwise_distance(empty(8)),
    batch_hard_triplet=lambda s: batch_hard_triplet(empty(8), NOBODY),
    branch_losses=lambda s: branch_losses(empty(8), empty(4), NOBODY),
    PKSampler=lambda s: PKSampler(NOBODY),
    load_images=lambda s: load_images(Split([], [], [])),
    to_device=lambda s: to_device(PICTURES, "cpu"),
    random_flip=lambda s: random_flip(PICTURES, KEY),
    normalize=lambda s: normalize(PICTURES),
    cutout=lambda s: cutout(PICTURES, KEY, size=2),
    random_erasing=lambda s: random_erasing(PICTURES, KEY),
    random_crop=lambda s: random_crop(PICTURES.float(), KEY),
    augment=lambda s: augment(PICTURES, KEY, cutout_size=2),
    extract_features=lambda s: extract_features(nn.Flatten(), PICTURES),
    distance_to=lambda s: distance_to(empty(8)),
    distance_to_query=lambda s: distance_to(torch.ones(2, 8))(empty(8)),
    summarize=lambda s: summarize([]),
    evaluate=lambda s: evaluate(empty(3), [], [], *SIDE),
    evaluate_gallery=lambda s: evaluate(*SIDE, empty(3), [], []),
    ranked_list=lambda s: ranked_list(empty(3), [], [], *SIDE, [0]),
    ranked_list_queries=lambda s: ranked_list(*SIDE, *SIDE, []),
    mutual_neighbours=lambda s: mutual_neighbours(np.zeros((0, 4), int), 2),
    reranked=lambda s: reranked(empty(3), SIDE[0], distance_to),
    branch_maps=lambda s: branch_maps(create_model("G", 4, "tiny", dim=8), PICTURES))


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_is_an_error_everywhere(name, nothing):
    with pytest.raises(ValueError, match="expected|such batches|choose|look at"):
        EMPTY[name](nothing)


def test_all_public_functions_are_tried_with_nothing():
    "But those that take no images; and those whose answer is right: nobody was found."
    modules = blocks, cutmix, evaluation, gradcam, images, losses, rerank, samplers
    names = {name for module in modules for name in module.__all__}
    exempt = {"keyed_generator", "Metrics", "load_splits", "evaluating",
              "average_precision", "images_of", "match_places", "neighbourhood"}
    assert names - exempt == names & set(EMPTY) and exempt < names


def test_paper_counts():
    "Design figures of the paper's network: 32.3 million parameters with three heads on CUHK03."
    model = create_model("PC2", 767)
    assert sum(p.numel() for p in model.parameters())/1e6 == pytest.approx(32.3, abs=.05)
    with torch.inference_mode():
        assert model.eval()(torch.zeros(1, 3, 384, 128)).shape == (1, 1536)
