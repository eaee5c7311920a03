"""Public functions on inputs of any size, type and magnitude: the right value of a naive float64
computation, or a ValueError. `EXAMPLES=500 pytest tests/test_properties.py` tries more of them."""
import functools
import json
import math
import os
import shlex
import subprocess
import sys
from argparse import ArgumentTypeError
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from conftest import ROOT
from gcutmix.base.console import command_line, given as parsed, numbers, parser_of, truth, words
from gcutmix.base.files import digest, read_json, write_json
from gcutmix.blocks import block_mask, block_scores
from gcutmix.commands import gcutmix_train
from gcutmix.config import TrainConfig
from gcutmix.cutmix import batch_dropblock, feature_cutmix, sample_partners
from gcutmix.data import Split
from gcutmix.evaluation import evaluate, ranked_list
from gcutmix.gradcam import grad_cam, pooled_grad_cam
from gcutmix.images import keyed_generator, random_crop
from gcutmix.losses import batch_hard_triplet
from gcutmix.samplers import PKSampler

EXAMPLES = int(os.environ.get("EXAMPLES", "12"))
# the same examples in every run; a temporary folder may serve all of them
tried = settings(max_examples=EXAMPLES, derandomize=EXAMPLES < 100, deadline=None, database=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds, few = st.integers(0, 2**32 - 1), st.integers(1, 5)
floats = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
sizes = st.sampled_from([1e-6, 1e-3, 1., 1e3])
LARGE = 2**62
identities = st.integers(-1, LARGE) | st.integers(0, 3)


def drawn(seed, *shape, dtype=torch.float64, size=1.):
    "Normal numbers that the type can hold, and the same in float64."
    given = (size*torch.randn(shape, generator=keyed_generator(seed), dtype=torch.float64))
    given = given.to(dtype)
    return given, given.double()


# Grad-CAM and blocks


@tried
@given(few, few, few, few, floats, sizes, seeds)
def test_grad_cam_is_eq_1(n, c, h, w, dtype, size, seed):
    "Of a score with a known derivative, a + bT."
    assume(size < 1e3 or dtype != torch.float16) # whose squares it cannot hold
    features, exact = drawn(seed, n, c, h, w, dtype=dtype, size=size)
    a, b = torch.randn(2, n, c, h, w, generator=keyed_generator(seed, 1)).to(dtype)
    features.requires_grad_()
    cam = grad_cam(features, (a*features + b*features.square()/2).sum((1, 2, 3)))
    a, b = a.double(), b.double()*exact
    parts = (a + b).mean((2, 3))[:, :, None, None]*exact
    summed = ((a.abs() + b.abs()).mean((2, 3))[:, :, None, None]*exact.abs()).sum(1)
    room = {torch.float64: 1e-6, torch.float32: 1e-5}.get(dtype, .03)*summed.max()
    assert cam.shape == (n, h, w) and not cam.requires_grad and (cam >= 0).all()
    assert cam.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert ((cam - parts.sum(1).relu()).abs() <= room).all()


@tried
@given(few, few, few, few, sizes, seeds)
def test_the_gradient_at_the_pooled_vector_is_enough(n, c, h, w, size, seed):
    features = drawn(seed, n, c, h, w, dtype=torch.float32, size=size)[0].requires_grad_()
    pooled = features.mean((2, 3))
    score = (pooled.square()/2).sum(1)
    exact = (pooled[:, :, None, None]*features).double().sum(1).relu()/(h*w)
    for cam in (grad_cam(features, score), pooled_grad_cam(features, pooled, score)):
        torch.testing.assert_close(cam.double(), exact, rtol=1e-4, atol=1e-5*size*size)


@tried
@given(few, few, few, few, few, st.integers(-2, 30), floats, seeds)
def test_blocks_are_a_naive_loop(n, rows, cols, bh, bw, k, dtype, seed):
    "Whole numbers: equal sums are frequent, and exact in every type."
    cam = torch.randint(0, 4, (n, rows*bh, cols*bw), generator=keyed_generator(seed)).to(dtype)
    sums = [[[sum(cam[i, r*bh + y, c*bw + x].item() for y in range(bh) for x in range(bw))
              for c in range(cols)] for r in range(rows)] for i in range(n)]
    assert block_scores(cam, (bh, bw)).tolist() == sums
    if not 0 <= k <= rows*cols:
        with pytest.raises(ValueError, match="k goes from 0"): block_mask(cam, k, (bh, bw))
        return
    mask = block_mask(cam, k, (bh, bw))
    assert mask.shape == (n, 1, *cam.shape[1:]) and mask.dtype == dtype
    for i in range(n):
        flat = [value for row in sums[i] for value in row]
        cut = sorted(range(rows*cols), key=lambda j: (-flat[j], j))[:k]
        for r in range(rows*bh):
            for c in range(cols*bw):
                assert mask[i, 0, r, c] == (r//bh*cols + c//bw not in cut)


@tried
@given(few, few, st.integers(-1, 6), st.integers(-1, 6))
def test_blocks_that_do_not_fit_are_an_error(h, w, bh, bw):
    fits = bh > 0 and bw > 0 and h % bh == 0 and w % bw == 0
    if fits: assert block_scores(torch.ones(1, h, w), (bh, bw)).sum() == h*w
    else:
        with pytest.raises(ValueError, match="cannot be cut"):
            block_scores(torch.ones(1, h, w), (bh, bw))


# CutMix


@tried
@given(few, few, few, few, floats, st.sampled_from([0., math.inf, -math.inf, math.nan]), seeds)
def test_what_is_hidden_leaves_nothing(n, c, h, w, dtype, bad, seed):
    "Neither a value nor a gradient, whatever stands in the hidden cells."
    anchor, partner = (drawn(seed + i, n, c, h, w, dtype=dtype)[0] for i in range(2))
    seen = torch.rand(n, 1, h, w, generator=keyed_generator(seed)) > .5
    expected = torch.where(seen, anchor, partner)
    anchor, partner = anchor.masked_fill(~seen, bad), partner.masked_fill(seen, bad)
    anchor.requires_grad_(), partner.requires_grad_()
    for mask in (seen, seen.to(dtype)):
        mixed = feature_cutmix(anchor, partner, mask)
        assert mixed.dtype == dtype and torch.equal(mixed, expected)
        a, b = torch.autograd.grad(mixed.sum(), (anchor, partner))
        assert torch.equal(a, seen.expand_as(a).to(dtype)) and (a + b == 1).all()


@tried
@given(few, few, st.integers(1, 24), st.integers(1, 12), st.floats(-.5, 1.5), st.floats(-.5, 1.5),
       floats, st.sampled_from([1., math.inf, -math.inf, math.nan]), seeds)
def test_dropblock_is_one_rectangle(n, c, h, w, height, width, dtype, bad, seed):
    "And 0 is in it, whatever was there."
    features = drawn(seed, n, c, h, w, dtype=dtype)[0] + 9
    if not (0 < height <= 1 and 0 < width <= 1):
        with pytest.raises(ValueError, match="shares of the map"):
            batch_dropblock(features, height, width)
        return
    out = batch_dropblock(features, height, width, keyed_generator(seed))
    hole = out == 0
    bh, bw = max(1, round(h*height)), max(1, round(w*width))
    assert torch.equal(hole, hole[:1, :1].expand_as(hole)) and hole[0, 0].sum() == bh*bw
    rows, columns = hole[0, 0].any(1).nonzero(), hole[0, 0].any(0).nonzero()
    assert len(rows) == bh == rows.max() - rows.min() + 1
    assert len(columns) == bw == columns.max() - columns.min() + 1
    assert torch.equal(out[~hole], features[~hole]) and out.dtype == dtype
    worse = features.masked_fill(hole, bad).requires_grad_()
    again = batch_dropblock(worse, height, width, keyed_generator(seed))
    again.sum().backward()
    assert torch.equal(again, out) and torch.equal(worse.grad, (~hole).to(dtype))


@tried
@given(st.lists(identities, min_size=0, max_size=12),
       st.sampled_from(["negative", "positive", "any"]), seeds)
def test_partners_of_any_identities(pids, mode, seed):
    def may(i, j): return i != j and (mode == "any" or (pids[i] == pids[j]) == (mode == "positive"))
    places = range(len(pids))
    if all(any(may(i, j) for j in places) for i in places) and pids:
        partners = sample_partners(torch.tensor(pids), mode, keyed_generator(seed))
        assert partners.dtype == torch.int64 and all(may(i, j) for i, j in enumerate(partners))
    elif pids:
        with pytest.raises(ValueError, match=f"no {mode} partner"):
            sample_partners(torch.tensor(pids), mode)


# The loss and the sampler


def hardest(embeddings, pids):
    "Soft-margin loss by two loops in float64; None if there is no triplet."
    losses = []
    for i, x in enumerate(embeddings):
        to = [math.dist(x, y) for y in embeddings]
        near = [to[j] for j in range(len(to)) if pids[j] == pids[i] and j != i]
        far = [to[j] for j in range(len(to)) if pids[j] != pids[i]]
        gap = max(near, default=None), min(far, default=None)
        if None not in gap: losses.append(np.logaddexp(0, gap[0] - gap[1]))
    return np.mean(losses) if losses else None


@tried
@given(st.lists(identities, min_size=1, max_size=9), st.integers(1, 5), floats, sizes,
       st.booleans(), seeds)
def test_triplet_is_two_loops(pids, d, dtype, size, twins, seed):
    embeddings, exact = drawn(seed, len(pids), d, dtype=dtype, size=size)
    if twins: embeddings[1:2], exact[1:2] = embeddings[:1], exact[:1]
    embeddings.requires_grad_()
    expected = hardest(exact.tolist(), pids)
    if expected is None:
        with pytest.raises(ValueError, match="no triplet"): batch_hard_triplet(embeddings, pids)
        return
    loss = batch_hard_triplet(embeddings, pids)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert embeddings.grad.isfinite().all()


@tried
@given(st.lists(identities, min_size=1, max_size=9), st.sampled_from([math.inf, math.nan]), seeds)
def test_a_loss_is_not_finite_if_an_embedding_is_not(pids, bad, seed):
    "Whoever holds it, an image without a positive included."
    embeddings, _ = drawn(seed, len(pids), 3, dtype=torch.float32)
    if hardest(embeddings.tolist(), pids) is None: return
    embeddings[seed % len(pids), seed % 3] = bad
    assert not batch_hard_triplet(embeddings, pids).isfinite()


@tried
@given(st.lists(identities, min_size=0, max_size=30), st.integers(0, 6), st.integers(0, 6), seeds,
       st.integers(0, 1000))
def test_batches_are_p_people_with_k_pictures(pids, p, k, seed, epoch):
    people = set(pids)
    if not (2 <= p <= len(people) and k >= 2):
        with pytest.raises(ValueError, match="p = |k = "): PKSampler(pids, p, k, seed)
        return
    sampler = PKSampler(pids, p, k, seed)
    sampler.set_epoch(epoch)
    batches, met = list(sampler), []
    assert batches == list(sampler) and len(batches) == len(sampler) == len(people)//p
    for batch in batches:
        groups = [batch[i:i + k] for i in range(0, p*k, k)]
        for group in groups:
            who, = {pids[i] for i in group}
            assert len(set(group)) == min(k, pids.count(who))
            met.append(who)
        assert len(batch) == p*k
    assert len(set(met)) == len(met)


# Evaluation


@st.composite
def rankings(draw):
    "Features of small whole numbers at any distance from the origin, in any type that holds them."
    dtype = draw(floats)
    high = {torch.float64: 2**30, torch.float32: 2**12, torch.float16: 64}.get(dtype, 16)
    q, g, d = draw(st.integers(1, 8)), draw(st.integers(1, 20)), draw(st.integers(1, 6))
    start = draw(st.integers(0, high - 8))
    rng = np.random.default_rng(draw(seeds))
    def side(n):
        return start + rng.integers(0, 8, (n, d)), rng.integers(0, 4, n), rng.integers(0, 3, n)
    return dtype, start, side(q), side(g)


def naive(query, gallery):
    "For each query the gallery without junk, nearest first, by whole numbers."
    lists = []
    for x, pid, cam in zip(*query):
        order = sorted(range(len(gallery[0])), key=lambda j: int(((x - gallery[0][j])**2).sum()))
        lists.append([j for j in order if (gallery[1][j], gallery[2][j]) != (pid, cam)])
    return lists


@tried
@given(rankings(), st.integers(1, 25))
def test_rankings_are_exact_far_from_the_origin(problem, k):
    dtype, start, query, gallery = problem
    sides = [(torch.tensor(x).to(dtype), *ids) for x, *ids in (query, gallery)]
    lists = naive(query, gallery)
    index, right = ranked_list(*sides[0], *sides[1], queries=np.arange(len(lists)), k=k)
    for i, kept in enumerate(lists):
        kept = kept[:index.shape[1]]
        assert index[i].tolist() == kept + [-1]*(index.shape[1] - len(kept))
        assert right[i, :len(kept)].tolist() == [gallery[1][j] == query[1][i] for j in kept]
        one = ranked_list(*sides[0], *sides[1], queries=[i], k=k)
        assert one[0][0].tolist() == index[i].tolist()
    hits = [[1 + n for n, j in enumerate(kept) if gallery[1][j] == pid]
            for kept, pid in zip(lists, query[1])]
    aps = [np.mean([(n + 1)/place for n, place in enumerate(places)]) for places in hits if places]
    if not aps:
        with pytest.raises(ValueError, match="has a match"): evaluate(*sides[0], *sides[1])
        return
    found = evaluate(*sides[0], *sides[1])
    assert found.mAP == pytest.approx(np.mean(aps), rel=1e-12)
    assert found.rank1 == pytest.approx(np.mean([places[0] == 1 for places in hits if places]))


@tried
@given(rankings())
def test_cosines_are_ranked_right(problem):
    "Every list, up to what float64 cannot tell apart."
    dtype, start, query, gallery = problem
    sides = [(torch.tensor(x + 1).to(dtype), *ids) for x, *ids in (query, gallery)]
    q, g = ((x + 1)/np.linalg.norm(x + 1, axis=1, keepdims=True) for x in (query[0], gallery[0]))
    index, _ = ranked_list(*sides[0], *sides[1], queries=np.arange(len(q)), k=len(g),
                           metric="cosine")
    for i, places in enumerate(index):
        places = places[places >= 0]
        assert (np.diff(q[i] @ g[places].T) <= 1e-11).all()


@tried
@given(st.lists(identities, min_size=1, max_size=12), seeds)
def test_labels_renumber_any_identities(pids, seed):
    split = Split([None]*len(pids), np.array(pids), np.zeros(len(pids), int))
    people = sorted(set(pids))
    assert split.num_pids == len(people)
    assert split.labels.tolist() == [people.index(pid) for pid in pids]


# Images


@tried
@given(few, st.integers(1, 20), st.integers(1, 20), st.floats(1., 2.), seeds)
def test_a_crop_shows_the_picture_where_it_was_taken(n, h, w, share, seed):
    "A picture that says in each pixel where that is, and that an enlargement keeps in order."
    rows, columns = torch.arange(h).float()[:, None], torch.arange(w).float()
    images = torch.stack([rows.expand(h, w), columns.expand(h, w), rows*columns]).expand(n, 3, h, w)
    out = random_crop(images, keyed_generator(seed), share)
    assert out.shape == images.shape
    y, x = out[:, 0, :, 0], out[:, 1, 0]
    torch.testing.assert_close(out[:, 0], y[:, :, None].expand(n, h, w))
    torch.testing.assert_close(out[:, 1], x[:, None].expand(n, h, w))
    assert (y.diff() >= -1e-4).all() and (x.diff() >= -1e-4).all()
    torch.testing.assert_close(out[:, 2], y[:, :, None]*x[:, None], rtol=1e-4, atol=1e-3)


# The console and files


@tried
@given(st.lists(st.integers(0, 10**9), max_size=4), st.sampled_from("x,"))
def test_numbers_there_and_back(given, sign):
    assert numbers(sign.join(map(str, given))) == tuple(given)


@tried
@given(st.text("0123456789x,.-+ e_yYesnotrufals٣²½é", max_size=8))
def test_any_text_is_numbers_or_an_error(text):
    assert "" not in words(text) and ",".join(words(text)) in (text, ",".join(words(text)))
    for read in (numbers, truth):
        try: read(text)
        except ArgumentTypeError as error: assert repr(text) in str(error)
        else: assert text == "" or text.lower() in {"true", "yes", "1", "false", "no", "0"} or (
            set(text) <= set("x,") | {c for c in text if c.isdecimal()})


whole, share = st.integers(0, 10**6), st.floats(0, 1)
names = st.text("aZ09_-./ 'ä\"$\\\n", min_size=1).filter(lambda text: text[0] != "-")
SETTINGS = dict(seed=whole, epochs=st.integers(1, 999), lr=st.floats(1e-9, 10), dataset=names,
                size=st.tuples(whole, whole), channels_last=st.booleans(), flip=share)


@functools.cache
def parser(): return parser_of(gcutmix_train.__wrapped__, TrainConfig)


@tried
@given(st.fixed_dictionaries({}, optional={
    key: kind for key, kind in SETTINGS.items() if key in {f.name for f in fields(TrainConfig)}}))
def test_a_command_says_what_it_was_made_of(asked):
    line = shlex.split(command_line("gcutmix_train", **asked))
    assert line[0] == "gcutmix_train"
    found = parsed(parser(), line[1:])
    assert {key: found[key] for key in asked} == asked


texts = st.text("aä\"\\\n\x00\u2028\ud800😀")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12)


@tried
@given(json_values)
def test_json_there_and_back(tmp_path, content):
    write_json(tmp_path/"ä.json", content)
    assert read_json(tmp_path/"ä.json") == content
    assert [path.name for path in tmp_path.iterdir()] == ["ä.json"]


@tried
@given(st.binary(max_size=40) | st.text('[]{}:,"0e-.ntrual\\', max_size=40).map(str.encode))
def test_any_bytes_are_json_or_an_error(tmp_path, content):
    file = tmp_path/"a.json"
    file.write_bytes(content)
    try: read_json(file)
    except ValueError as error: assert "a.json is damaged" in str(error)
    else: json.loads(content)


@tried
@given(st.lists(st.binary(max_size=20), min_size=2, max_size=9, unique=True))
def test_digests_differ(contents): assert len(set(map(digest, contents))) == len(contents)


@pytest.mark.slow
def test_five_hundred_examples_of_each():
    "In a process of its own, other ones each time."
    line = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider",
            "tests/test_properties.py"]
    done = subprocess.run(line, cwd=ROOT, env=os.environ | {"EXAMPLES": "500"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-9000:]
