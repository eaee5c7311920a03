"The evaluator against plain loops, scikit-learn and a dense re-ranking that share no code with it."
import inspect
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import average_precision_score
from torch import nn

from gcutmix.base.distances import Pairs, counts
from gcutmix.base.pictures import show_ranked_lists
from gcutmix.base.rerank import reranked
from gcutmix.evaluation import (average_precision, distance_to, evaluate, extract_features,
                                images_of, match_places, ranked_list, summarize)


def double_loop(dist, qp, qc, gp, gc, max_rank=None):
    """The rule, one image at a time. For each query: sort the gallery (equal distances keep their
    order), pass over images of the same person and camera, and at each right image note
    hits so far / images so far."""
    aps, firsts, inps = [], [], []
    for row, pid, camid in zip(dist, qp, qc):
        seen = hits = total = last = 0
        first = None
        for i in sorted(range(len(row)), key=row.__getitem__):
            if gp[i] == pid and gc[i] == camid: continue
            seen += 1
            if gp[i] != pid: continue
            hits, last, first = hits + 1, seen, first or seen
            if max_rank is None or seen <= max_rank: total += hits/seen
        aps.append(total/hits if hits else np.nan)
        if hits:
            firsts.append(first)
            inps.append(hits/last)
    return np.array(aps), np.array(firsts), np.array(inps)


def squared(q, g):
    difference = q[:, None].astype(float) - g[None].astype(float)
    return (difference**2).sum(-1)


@st.composite
def problems(draw):
    Q, G, D = draw(st.integers(1, 12)), draw(st.integers(1, 30)), draw(st.integers(1, 4))
    pids, cams, high = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    def side(n):
        features = rng.integers(0, high, (n, D)).astype(np.float32)
        return features, rng.integers(-1, pids, n), rng.integers(0, cams, n)
    return *side(Q), *side(G)


ranks, chunks = st.sampled_from([None, 1, 3, 50]), st.sampled_from([1e-9, 1e-4, 5e-4, 64])


@settings(max_examples=300, deadline=None)
@given(problems(), ranks, chunks, st.integers(1, 60))
def test_double_loop(six, max_rank, chunk_mb, topk):
    "Whole-number features: many ties, and distances that are exact in every order of summation."
    q, qp, qc, g, gp, gc = six
    ap, first, inp = double_loop(squared(q, g), qp, qc, gp, gc, max_rank)
    if not len(first):
        with pytest.raises(ValueError, match="has a match"): evaluate(*six)
        return
    m = evaluate(*six, ap_max_rank=max_rank, chunk_mb=chunk_mb, topk=topk)
    np.testing.assert_allclose(m.ap, ap, rtol=1e-12)
    cmc = [(first <= k).mean() for k in range(1, min(topk, len(g)) + 1)]
    np.testing.assert_allclose(m.cmc, cmc, rtol=1e-12)
    np.testing.assert_allclose([m.mAP, m.mINP], [np.nanmean(ap), inp.mean()], rtol=1e-12)
    assert (m.num_queries, m.num_ignored) == (len(first), len(q) - len(first))
    assert m.rank1 == m.cmc[0] and (np.diff(m.ap[m.hardest_first]) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(1, 12))
def test_ranked_list(six, k):
    q, qp, qc, g, gp, gc = six
    index, right = ranked_list(*six, queries=np.arange(len(q)), k=k)
    for i, row in enumerate(squared(q, g)):
        junk = (gp == qp[i]) & (gc == qc[i])
        kept = [j for j in np.argsort(row, kind="stable") if not junk[j]][:k]
        empty = index.shape[1] - len(kept)
        assert index[i].tolist() == kept + [-1]*empty
        assert right[i].tolist() == [gp[j] == qp[i] for j in kept] + [False]*empty


def people(Q=40, G=160, D=8, P=20, seed=0, dtype=torch.float64, noise=.5):
    gen = torch.Generator().manual_seed(seed)
    centres = torch.randn(P, D, generator=gen, dtype=dtype)
    def side(n):
        pids = torch.randint(0, P, (n,), generator=gen)
        features = centres[pids] + noise*torch.randn(n, D, generator=gen, dtype=dtype)
        return features, pids, torch.randint(0, 3, (n,), generator=gen)
    return *side(Q), *side(G)


def test_scikit_learn():
    q, qp, qc, g, gp, gc = six = people()
    m = evaluate(*six)
    for i in range(len(q)):
        keep = ~((gp == qp[i]) & (gc == qc[i]))
        nearness = -(q[i] - g[keep]).square().sum(1)
        theirs = average_precision_score(gp[keep] == qp[i], nearness)
        assert m.ap[i] == pytest.approx(theirs, abs=1e-12)


def test_by_hand():
    "Distances 1 to 6; junk at 1; matches at 2 and 5, so at places 1 and 4 of what is left."
    g = torch.arange(1., 7)[:, None].sqrt()
    six = torch.zeros(1, 1), [7], [1], g, [7, 7, 3, 4, 7, 5], [1, 2, 1, 1, 2, 2]
    m = evaluate(*six)
    assert m.ap.tolist() == [(1/1 + 2/4)/2] and m.mINP == 2/4 and m.cmc.tolist() == [1.]*6
    assert evaluate(*six, ap_max_rank=3).mAP == 1/2


def test_junk_and_distractors_do_not_count():
    q, qp, qc, g, gp, gc = people(seed=1)
    plain = evaluate(q, qp, qc, g, gp, gc)
    first = q[:1], qp[:1], qc[:1]
    nine = q[:1].repeat(9, 1), qp[:1].repeat(9), qc[:1].repeat(9)
    junk = evaluate(*first, *map(torch.cat, zip((g, gp, gc), nine)))
    assert junk.ap[0] == pytest.approx(plain.ap[0], abs=1e-12)
    strangers = g[:5] + 1e3, torch.full((5,), -2), gc[:5]
    far = map(torch.cat, zip((g, gp, gc), strangers))
    np.testing.assert_allclose(evaluate(q, qp, qc, *far).ap, plain.ap, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("numpy", [False, True])
def test_any_float(dtype, numpy):
    if numpy and dtype == torch.bfloat16: pytest.skip("NumPy has no bfloat16")
    q, qp, qc, g, gp, gc = people(seed=2)
    q, g = (8*q).round().to(dtype), (8*g).round().to(dtype)
    ap = double_loop(squared(q.double().numpy(), g.double().numpy()), qp, qc, gp, gc)[0]
    if numpy: q, g = q.numpy(), g.numpy()
    cameras = qc.numpy().astype(np.uint8)
    m = evaluate(q, qp.tolist(), cameras, g, tuple(gp.tolist()), gc.int())
    np.testing.assert_allclose(m.ap, ap, rtol=1e-12)


def test_inputs_stay_as_they_are():
    six = people(seed=3)
    before = [x.clone() for x in six]
    six[0].requires_grad_()
    evaluate(*six, l2=True, rerank=True)
    assert all(torch.equal(a, b) for a, b in zip(six, before))
    frozen = six[0].detach().numpy()
    frozen.flags.writeable = False
    with np.errstate(all="raise"): assert evaluate(frozen, *six[1:]).mAP == evaluate(*six).mAP


def test_metrics_and_options():
    q, qp, qc, g, gp, gc = six = people(seed=4)
    cosine = 1 - nn.functional.normalize(q) @ nn.functional.normalize(g).T
    ap = double_loop(cosine.numpy(), qp, qc, gp, gc)[0]
    for options in (dict(metric="cosine"), dict(l2=True), dict(l2=True, metric="cosine")):
        np.testing.assert_allclose(evaluate(*six, **options).ap, ap, atol=1e-12)
    m = evaluate(*six)
    assert evaluate(*six, ap_max_rank=5).mAP < m.mAP == evaluate(*six, ap_max_rank=len(g)).mAP
    assert len(m.cmc) == 50 and len(evaluate(*six, topk=500).cmc) == len(g)
    assert "mAP" in repr(m) and json.loads(json.dumps(m.as_dict()))["num_queries"] == 40


def nearly_equal(spread, length=1000):
    "Vectors of this length that differ by `spread` in each number; copies are ties."
    q, qp, qc, g, gp, gc = people(D=128, dtype=torch.float32)
    direction = nn.functional.normalize(torch.ones(1, 128))
    q, g = (length*direction + spread*x for x in (q, g))
    g[50:60], g[100:110] = g[:10], g[:10]
    return q, qp, qc, g, gp, gc


def moved(shift):
    q, qp, qc, g, gp, gc = people(D=128, dtype=torch.float32)
    return q + shift, qp, qc, g + shift, gp, gc


def as_seen(x, unit):
    "float64 features, and which rows are zeros."
    x = np.asarray(x, dtype=float)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x/np.where(length == 0, 1, length) if unit else x, length[:, 0] == 0


def exactly(q, g, metric="euclidean", l2=False):
    "The truth: differences in float64, for the cosine in proportion."
    (q, q0), (g, g0) = (as_seen(x, l2 or metric == "cosine") for x in (q, g))
    extra = q0[:, None].astype(float) + g0 if metric == "cosine" else 0
    return np.vectorize(lambda x: float(f"{x:.11e}"))(squared(q, g) + extra)


def with_zeros():
    q, qp, qc, g, gp, gc = moved(0.)
    q[::7], g[::5] = 0, 0
    return q, qp, qc, g, gp, gc


def codes(step):
    "Few values, so that nearly all distances tie."
    q, qp, qc, g, gp, gc = moved(0.)
    return step*q.sign(), qp, qc, step*g.sign(), gp, gc


SIX = dict(far=moved(3000.), farther=moved(1e5), long=nearly_equal(1e-3), tight=nearly_equal(1e-2),
           near=nearly_equal(1e-5, 1), plain=moved(0.), zeros=with_zeros())
WAYS = [({}, torch.float32), ({}, torch.float64), (dict(metric="cosine"), torch.float32),
        (dict(l2=True), torch.float32)]
CASES = [(six, *way) for six in SIX.values() for way in WAYS]
CASES += [(codes(step), {}, torch.float32) for step in (1, .25)]


@pytest.mark.parametrize("six, options, dtype", CASES)
def test_round_off_decides_nothing(six, options, dtype):
    q, qp, qc, g, gp, gc = six
    six = q, qp, qc, g, gp, gc = q.to(dtype), qp, qc, g.to(dtype), gp, gc
    truth = exactly(q, g, **options)
    ap, _, _ = double_loop(truth, qp.numpy(), qc.numpy(), gp.numpy(), gc.numpy())
    for chunk_mb in (64, 1e-9): # all at once, and one query at a time
        found = evaluate(*six, chunk_mb=chunk_mb, **options)
        np.testing.assert_allclose(found.ap, ap, rtol=1e-12)
    index, _ = ranked_list(*six, queries=np.arange(40), k=50, **options)
    single = [ranked_list(*six, queries=i, k=50, **options)[0][0] for i in range(0, 40, 4)]
    np.testing.assert_array_equal(index[::4], single)
    truth[(qp[:, None] == gp).numpy() & (qc[:, None] == gc).numpy()] = np.inf
    np.testing.assert_array_equal(index, truth.argsort(1, kind="stable")[:, :50])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dim", [17, 64, 512])
def test_equal_pictures_have_equal_distances(dim, metric):
    for n in (1, 2, 3, 4, 5, 6, 9):
        for size in (3, 5, 7, 9, 11, 13, 17, 33, 57, 530):
            g = torch.randn(size, dim)
            g[::2] = g[0]
            distances = distance_to(g, metric)(torch.randn(n, dim))
            assert distances.shape == (n, size) and (distances[:, ::2].diff(dim=1) == 0).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3000), st.integers(1, 400), st.integers(0, 99))
def test_sorting_and_counting_agree(matches, strangers, levels, seed):
    rng = np.random.default_rng(seed)
    row = rng.integers(0, levels, strangers).astype(np.float32)
    low = rng.integers(0, levels, matches).astype(np.float32)
    below, upto = counts(row, low, low + 1)
    np.testing.assert_array_equal(below, (row < low[:, None]).sum(1))
    np.testing.assert_array_equal(upto, (row <= low[:, None] + 1).sum(1))


def test_a_product_of_low_precision_is_not_asked_for():
    six = people(D=64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluate(*six).ap.tolist() == evaluate(*six).ap.tolist()
        assert distance_to(six[3])(six[0]).dtype == torch.float32


def test_a_list_of_junk_is_empty():
    q, qp, qc, g, gp, gc = people()
    index, right = ranked_list(q, qp*0, qc*0, g, gp*0, gc*0, [3, 5], k=4)
    assert (index == -1).all() and not right.any()


@pytest.mark.parametrize("queries, k", [([0], 0), ([0], -3), ([], 5), ([40], 5), ([-1], 5),
                                        ([.5], 5)])
def test_lists_that_cannot_be(queries, k):
    with pytest.raises(ValueError, match="expected"): ranked_list(*people(), queries, k)


def test_zero_features_all_tie():
    "A dead network: everything at distance 0, so the order is the gallery's own."
    q, qp, qc, g, gp, gc = people(seed=5)
    ap = double_loop(np.zeros((len(q), len(g))), qp, qc, gp, gc)[0]
    for metric in ("euclidean", "cosine"):
        m = evaluate(q*0, qp, qc, g*0, gp, gc, metric=metric)
        np.testing.assert_allclose(m.ap, ap, rtol=1e-12)


@pytest.mark.parametrize("position,value,message", [
    (0, torch.full((40, 8), torch.nan), "query features: 40 of 40 rows"),
    (3, torch.full((160, 8), 1e30), "too large to square"),
    (0, torch.zeros(40), "expected floating point of shape"),
    (0, torch.zeros(40, 8, dtype=torch.long), "found torch.int64"),
    (3, torch.zeros(0, 8), "N and D > 0"),
    (0, torch.zeros(40, 0), "N and D > 0"),
    (1, np.full(40, 2**63, np.uint64), "query_pids: found 9223372036854775808, .*below 2"),
    (0, torch.zeros(40, 9), "9 dimensions, gallery features 8"),
    (0, torch.zeros(9, 8), "query_pids: .*expected 9 integers"),
    (1, [1]*39, "query_pids: .*expected 40 integers"),
    (2, ["a"]*40, "query_camids"),
    (4, torch.zeros(160), "gallery_pids: found float32"),
    (5, torch.zeros(160, 1, dtype=torch.long), "gallery_camids"),
    (4, [99]*160, "none of 40 queries has a match")])
def test_clear_errors(position, value, message):
    six = list(people(dtype=torch.float32))
    six[position] = value
    with pytest.raises(ValueError, match=message): evaluate(*six)


@pytest.mark.parametrize("rerank", [False, True])
def test_unknown_metric(rerank):
    with pytest.raises(ValueError, match="expected \"euclidean\""):
        evaluate(*people(), metric="l1", rerank=rerank)


def test_cut_below_the_first_place():
    with pytest.raises(ValueError, match="ap_max_rank 0: expected 1 or more"):
        evaluate(*people(), ap_max_rank=0)


def test_reranking_of_a_dead_network():
    "All images at distance 0: no division by it, and no precision above 1."
    q, qp, qc, g, gp, gc = people()
    with np.errstate(invalid="raise", divide="raise"):
        found = evaluate(q*0, qp, qc, g*0, gp, gc, rerank=True)
    assert (found.ap > 0).all() and (found.ap <= 1).all() and found.mINP <= 1


def dense_reranking(q, g, k1, k2, lam):
    "k-reciprocal encoding with sets and full matrices, from the steps of the article (section 3)."
    x = np.concatenate([q, g])
    d = squared(x, x)
    d /= d.max(1, keepdims=True)
    rank = d.argsort(1)
    def near(i, k): return {j for j in rank[i, :k + 1] if i in rank[j, :k + 1]}
    V = np.zeros_like(d)
    for i in range(len(x)):
        core = near(i, k1)
        halves = [near(j, round(k1/2)) for j in core]
        wide = core.union(*(s for s in halves if len(s & core) > 2/3*len(s)))
        for j in wide: V[i, j] = np.exp(-d[i, j])
        V[i] /= V[i].sum()
    V = V[rank[:, :k2]].mean(1)
    mine = V[:len(q), None]
    low, high = np.minimum(mine, V).sum(-1), np.maximum(mine, V).sum(-1)
    return ((1 - lam)*(1 - low/high) + lam*d[:len(q)])[:, len(q):]


SETTINGS = [(20, 6, .3), (20, 1, .3), (5, 3, 0.), (7, 6, .9), (1, 1, .3), (20, 30, .3)]


@pytest.mark.parametrize("k1,k2,lam", SETTINGS)
def test_reranking(k1, k2, lam):
    q, qp, qc, g, gp, gc = six = people(Q=30, G=100, D=16)
    dense = dense_reranking(q.numpy(), g.numpy(), k1, k2, lam)
    sparse = reranked(q, g, distance_to, k1, k2, lam)(torch.arange(30))
    np.testing.assert_allclose(sparse, dense, atol=1e-12)
    if (k1, k2, lam) != SETTINGS[0]: return
    ap = double_loop(dense, qp, qc, gp, gc)[0]
    for chunk_mb in (.001, 64):
        m = evaluate(*six, rerank=True, chunk_mb=chunk_mb)
        np.testing.assert_allclose(m.ap, ap, atol=1e-9)


def test_reranking_of_few_and_of_doubles():
    q, qp, qc, g, gp, gc = people(Q=3, G=6, P=2)
    assert reranked(q, g, distance_to)(torch.arange(3)).isfinite().all()
    thrice = torch.cat([g, g, g]), gp.repeat(3), gc.repeat(3)
    assert np.isfinite(evaluate(q, qp, qc, *thrice, rerank=True).mAP)


def test_places_and_precision():
    assert images_of(np.array([2, 9]), np.array([2, 1, 2]))[0].tolist() == [0, 2]
    row = np.array([3., 1, 1, 1])
    assert match_places(row, np.array([0, 3]), np.array([1])).tolist() == [2, 3]
    assert average_precision(np.array([2, 4]), 1) == 0 and np.isnan(average_precision([]))
    assert summarize([np.array([1]), np.array([3])], topk=3).cmc.tolist() == [.5, .5, 1]


class Counts(nn.Module):
    "Remembers how it was called."
    def __init__(self):
        super().__init__()
        self.bn, self.frozen, self.calls = nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval(), []

    def forward(self, x):
        inference = torch.is_inference_mode_enabled()
        self.calls.append((len(x), self.training, self.bn.training, inference))
        return self.frozen(self.bn(x)).flatten(1).half()


def test_extract_features():
    images = torch.randint(0, 256, (10, 3, 8, 4), dtype=torch.uint8)
    model = Counts()
    features = extract_features(model, images, batch_size=4)
    assert features.dtype == torch.float32 and features.shape == (10, 96)
    assert not features.is_inference()
    assert model.calls == [(n, False, False, True) for n in (4, 4, 2)]
    assert (model.training, model.bn.training, model.frozen.training) == (True, True, False)
    assert model.bn.num_batches_tracked == 0
    mirrored = extract_features(model, images.flip(-1))
    both = extract_features(model, images, flip=True)
    torch.testing.assert_close(both, (features + mirrored)/2, atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_extract_features_of_any_float_type(dtype):
    images = torch.randint(0, 256, (4, 3, 8, 4), dtype=torch.uint8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten())
    expected = extract_features(model, images)
    found = extract_features(model.to(dtype), images, flip=False)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=.1, rtol=.05)


def test_extract_features_restores_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Linear(3, 3)).train()
    images = torch.zeros(2, 3, 8, 4, dtype=torch.uint8)
    with pytest.raises(RuntimeError): extract_features(model, images)
    assert all(m.training for m in model.modules())


def test_show_ranked_lists():
    import matplotlib.pyplot as plt
    images = torch.zeros(5, 3, 12, 4, dtype=torch.uint8)
    index, right = np.array([[0, 3, -1]]), np.array([[True, False, False]])
    fig = show_ranked_lists(images, images, [2], index, right, ["AP"])
    assert len(fig.axes) == 4 and [len(ax.images) for ax in fig.axes] == [1, 1, 1, 0]
    hit, miss = (ax.spines["left"] for ax in fig.axes[1:3])
    assert hit.get_edgecolor() != miss.get_edgecolor()
    assert hit.get_linestyle() != miss.get_linestyle()
    plt.close(fig)


def test_memory_is_bounded(monkeypatch):
    "No tensor of distances is larger than `chunk_mb`."
    seen, rows_of = [], Pairs.rows
    def spy(*args):
        rows = rows_of(*args)
        seen.append(rows.nbytes)
        return rows
    monkeypatch.setattr(Pairs, "rows", spy)
    six = people(Q=300, G=1000)
    single = six[0].float(), *six[1:3], six[3].float(), *six[4:]
    mixed = six[0].double(), *single[1:]
    for more, size in ((single, 4), (mixed, 8)): # the wider type decides
        seen.clear()
        evaluate(*more, chunk_mb=.1)
        rows = int(.1*2**20)//(size*1000)
        assert len(seen) == -(-300//rows) and max(seen) <= .1*2**20


def test_console_script_options():
    from gcutmix.commands import gcutmix_evaluate
    options = set(inspect.signature(gcutmix_evaluate).parameters)
    assert {"model", "dataset", "root", "out"} <= options
    assert {"flip", "l2", "metric", "ap_max_rank", "rerank"} <= options


@pytest.mark.cuda
def test_cuda():
    q, qp, qc, g, gp, gc = people(seed=6)
    q, g = (8*q).round().float(), (8*g).round().float()
    six = q, qp, qc, g, gp, gc
    ap = evaluate(*six).ap
    for device, query in (("cuda", q), (None, q.cuda())):
        m = evaluate(query, qp.cuda(), qc, g, gp, gc, device=device)
        np.testing.assert_allclose(m.ap, ap, rtol=1e-12)
    slow, fast = (evaluate(*six, rerank=True, device=device).mAP for device in ("cpu", "cuda"))
    assert slow == pytest.approx(fast, abs=1e-3)
    images = torch.randint(0, 256, (10, 3, 8, 4), dtype=torch.uint8)
    assert extract_features(nn.Flatten(), images, device="cuda").device.type == "cpu"
    assert extract_features(Counts().cuda(), images).device.type == "cpu"
