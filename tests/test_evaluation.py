"The evaluator against plain loops, scikit-learn and a dense re-ranking, none of which share its code."
import inspect
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import average_precision_score
from torch import nn

from gcutmix.evaluation import average_precision, evaluate, extract_features, images_of, match_places, ranked_list, reranked, show_ranked_lists, summarize


def double_loop(dist, qp, qc, gp, gc, max_rank=None):
    """The rule, one image at a time. For each query: sort the gallery (equal distances keep their order), pass over
    images of the same person and camera, and at each right image note hits so far / images so far."""
    aps, firsts, inps = [], [], []
    for row, pid, camid in zip(dist, qp, qc):
        seen = hits = total = last = 0
        first = None
        for i in sorted(range(len(row)), key=lambda i: row[i]):
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


def squared(q, g): return ((q[:, None].astype(float) - g[None].astype(float))**2).sum(-1)


@st.composite
def problems(draw):
    Q, G, D = draw(st.integers(1, 12)), draw(st.integers(1, 30)), draw(st.integers(1, 4))
    pids, cams, high = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    side = lambda n: (rng.integers(0, high, (n, D)).astype(np.float32), rng.integers(-1, pids, n), rng.integers(0, cams, n))
    return *side(Q), *side(G)


@settings(max_examples=300, deadline=None)
@given(problems(), st.sampled_from([None, 1, 3, 50]), st.sampled_from([1e-9, 1e-4, 5e-4, 64]), st.integers(1, 60))
def test_double_loop(six, max_rank, chunk_mb, topk):
    "Whole-number features: many ties, and distances that are exact in every order of summation."
    q, qp, qc, g, gp, gc = six
    ap, first, inp = double_loop(squared(q, g), qp, qc, gp, gc, max_rank)
    if not len(first):
        with pytest.raises(ValueError, match="has a match"): evaluate(*six)
        return
    m = evaluate(*six, ap_max_rank=max_rank, chunk_mb=chunk_mb, topk=topk)
    np.testing.assert_allclose(m.ap, ap, rtol=1e-12)
    np.testing.assert_allclose(m.cmc, [(first <= k).mean() for k in range(1, min(topk, len(g)) + 1)], rtol=1e-12)
    np.testing.assert_allclose([m.mAP, m.mINP], [np.nanmean(ap), inp.mean()], rtol=1e-12)
    assert (m.num_queries, m.num_ignored) == (len(first), len(q) - len(first))
    assert m.rank1 == m.cmc[0] and (np.diff(m.ap[m.hardest_first]) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(1, 12))
def test_ranked_list(six, k):
    q, qp, qc, g, gp, gc = six
    index, right = ranked_list(*six, queries=np.arange(len(q)), k=k)
    for i, row in enumerate(squared(q, g)):
        kept = [j for j in np.argsort(row, kind="stable") if not (gp[j] == qp[i] and gc[j] == qc[i])][:k]
        assert index[i].tolist() == kept + [-1]*(index.shape[1] - len(kept))
        assert right[i].tolist() == [gp[j] == qp[i] for j in kept] + [False]*(index.shape[1] - len(kept))


def people(Q=40, G=160, D=8, P=20, seed=0, dtype=torch.float64, noise=.5):
    gen = torch.Generator().manual_seed(seed)
    centres = torch.randn(P, D, generator=gen, dtype=dtype)
    def side(n):
        pids = torch.randint(0, P, (n,), generator=gen)
        return centres[pids] + noise*torch.randn(n, D, generator=gen, dtype=dtype), pids, torch.randint(0, 3, (n,), generator=gen)
    return *side(Q), *side(G)


def test_scikit_learn():
    q, qp, qc, g, gp, gc = six = people()
    m = evaluate(*six)
    for i in range(len(q)):
        keep = ~((gp == qp[i]) & (gc == qc[i]))
        assert m.ap[i] == pytest.approx(average_precision_score(gp[keep] == qp[i], -(q[i] - g[keep]).square().sum(1)), abs=1e-12)


def test_by_hand():
    "Distances 1 to 6; junk at 1; matches at 2 and 5, so at places 1 and 4 of what is left."
    g = torch.arange(1., 7)[:, None].sqrt()
    m = evaluate(torch.zeros(1, 1), [7], [1], g, [7, 7, 3, 4, 7, 5], [1, 2, 1, 1, 2, 2])
    assert m.ap.tolist() == [(1/1 + 2/4)/2] and m.mINP == 2/4 and m.cmc.tolist() == [1.]*6
    assert evaluate(torch.zeros(1, 1), [7], [1], g, [7, 7, 3, 4, 7, 5], [1, 2, 1, 1, 2, 2], ap_max_rank=3).mAP == 1/2


def test_junk_and_distractors_do_not_count():
    q, qp, qc, g, gp, gc = people(seed=1)
    plain = evaluate(q, qp, qc, g, gp, gc)
    junk = evaluate(q[:1], qp[:1], qc[:1], torch.cat([g, q[:1].repeat(9, 1)]), torch.cat([gp, qp[:1].repeat(9)]), torch.cat([gc, qc[:1].repeat(9)]))
    assert junk.ap[0] == pytest.approx(plain.ap[0], abs=1e-12)
    far = torch.cat([g, g[:5] + 1e3]), torch.cat([gp, torch.zeros(5, dtype=torch.long) - 2]), torch.cat([gc, gc[:5]])
    np.testing.assert_allclose(evaluate(q, qp, qc, *far).ap, plain.ap, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("numpy", [False, True])
def test_any_float(dtype, numpy):
    if numpy and dtype == torch.bfloat16: pytest.skip("NumPy has no bfloat16")
    q, qp, qc, g, gp, gc = people(seed=2)
    q, g = (8*q).round().to(dtype), (8*g).round().to(dtype)
    ap = double_loop(squared(q.double().numpy(), g.double().numpy()), qp, qc, gp, gc)[0]
    as_given = (lambda x: x.numpy()) if numpy else (lambda x: x)
    m = evaluate(as_given(q), qp.tolist(), qc.numpy().astype(np.uint8), as_given(g), tuple(gp.tolist()), gc.int())
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
    assert evaluate(*six, ap_max_rank=5).mAP < evaluate(*six).mAP == evaluate(*six, ap_max_rank=len(g)).mAP
    assert len(evaluate(*six).cmc) == 50 and len(evaluate(*six, topk=500).cmc) == len(g)
    assert "mAP" in repr(evaluate(*six)) and json.loads(json.dumps(evaluate(*six).as_dict()))["num_queries"] == 40


def test_zero_features_all_tie():
    "A dead network: everything at distance 0, so the order is the gallery's own."
    q, qp, qc, g, gp, gc = people(seed=5)
    ap = double_loop(np.zeros((len(q), len(g))), qp, qc, gp, gc)[0]
    for metric in ("euclidean", "cosine"): np.testing.assert_allclose(evaluate(q*0, qp, qc, g*0, gp, gc, metric=metric).ap, ap, rtol=1e-12)


@pytest.mark.parametrize("position,value,message", [
    (0, torch.full((40, 8), torch.nan), "query features: 40 of 40 rows"), (3, torch.full((160, 8), 1e30), "too large to square"),
    (0, torch.zeros(40), "expected floating point of shape"), (0, torch.zeros(40, 8, dtype=torch.long), "found torch.int64"),
    (3, torch.zeros(0, 8), "N > 0"), (0, torch.zeros(40, 9), "9 dimensions, gallery features 8"), (1, [1]*39, "query_pids: .*expected 40 integers"),
    (2, ["a"]*40, "query_camids"), (4, torch.zeros(160), "gallery_pids: found float32"), (5, torch.zeros(160, 1, dtype=torch.long), "gallery_camids"),
    (4, [99]*160, "none of 40 queries has a match")])
def test_clear_errors(position, value, message):
    six = list(people(dtype=torch.float32))
    six[position] = value
    with pytest.raises(ValueError, match=message): evaluate(*six)


def test_unknown_metric():
    with pytest.raises(ValueError, match="expected \"euclidean\""): evaluate(*people(), metric="l1")


def test_reranking_of_a_dead_network():
    "All images at distance 0: no division by it, and no precision above 1."
    q, qp, qc, g, gp, gc = people()
    with np.errstate(invalid="raise", divide="raise"): found = evaluate(q*0, qp, qc, g*0, gp, gc, rerank=True)
    assert (found.ap > 0).all() and (found.ap <= 1).all() and found.mINP <= 1


def dense_reranking(q, g, k1, k2, lam):
    "k-reciprocal encoding with sets and full matrices, from the steps of the article (section 3)."
    x = np.concatenate([q, g])
    d = squared(x, x)
    d /= d.max(1, keepdims=True)
    rank = d.argsort(1)
    near = lambda i, k: {j for j in rank[i, :k + 1] if i in rank[j, :k + 1]}
    V = np.zeros_like(d)
    for i in range(len(x)):
        core = near(i, k1)
        wide = core.union(*(s for s in (near(j, round(k1/2)) for j in core) if len(s & core) > 2/3*len(s)))
        for j in wide: V[i, j] = np.exp(-d[i, j])
        V[i] /= V[i].sum()
    V = V[rank[:, :k2]].mean(1)
    low, high = np.minimum(V[:len(q), None], V).sum(-1), np.maximum(V[:len(q), None], V).sum(-1)
    return ((1 - lam)*(1 - low/high) + lam*d[:len(q)])[:, len(q):]


@pytest.mark.parametrize("k1,k2,lam", [(20, 6, .3), (20, 1, .3), (5, 3, 0.), (7, 6, .9), (1, 1, .3), (20, 30, .3)])
def test_reranking(k1, k2, lam):
    q, qp, qc, g, gp, gc = six = people(Q=30, G=100, D=16)
    np.testing.assert_allclose(reranked(q, g, k1, k2, lam)(torch.arange(30)), dense_reranking(q.numpy(), g.numpy(), k1, k2, lam), atol=1e-12)
    if (k1, k2, lam) == (20, 6, .3):
        ap = double_loop(dense_reranking(q.numpy(), g.numpy(), k1, k2, lam), qp, qc, gp, gc)[0]
        for chunk_mb in (.001, 64): np.testing.assert_allclose(evaluate(*six, rerank=True, chunk_mb=chunk_mb).ap, ap, atol=1e-9)


def test_reranking_of_few_and_of_doubles():
    q, qp, qc, g, gp, gc = people(Q=3, G=6, P=2)
    assert reranked(q, g)(torch.arange(3)).isfinite().all()
    again = torch.cat([g, g, g])
    assert np.isfinite(evaluate(q, qp, qc, again, gp.repeat(3), gc.repeat(3), rerank=True).mAP)


def test_places_and_precision():
    assert images_of(np.array([2, 9]), np.array([2, 1, 2]))[0].tolist() == [0, 2]
    assert match_places(np.array([3., 1, 1, 1]), np.array([0, 3]), np.array([1])).tolist() == [2, 3]
    assert average_precision(np.array([2, 4]), 1) == 0 and np.isnan(average_precision([]))
    assert summarize([np.array([1]), np.array([3])], topk=3).cmc.tolist() == [.5, .5, 1]


class Counts(nn.Module):
    "Remembers how it was called."
    def __init__(self):
        super().__init__()
        self.bn, self.frozen, self.calls = nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval(), []

    def forward(self, x):
        self.calls.append((len(x), self.training, self.bn.training, torch.is_inference_mode_enabled()))
        return self.frozen(self.bn(x)).flatten(1).half()


def test_extract_features():
    images = torch.randint(0, 256, (10, 3, 8, 4), dtype=torch.uint8)
    model = Counts()
    features = extract_features(model, images, batch_size=4)
    assert features.dtype == torch.float32 and features.shape == (10, 96) and not features.is_inference()
    assert model.calls == [(n, False, False, True) for n in (4, 4, 2)]
    assert (model.training, model.bn.training, model.frozen.training) == (True, True, False) and model.bn.num_batches_tracked == 0
    mirrored = extract_features(model, images.flip(-1))
    torch.testing.assert_close(extract_features(model, images, flip=True), (features + mirrored)/2, atol=2e-3, rtol=0)


def test_extract_features_restores_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Linear(3, 3)).train()
    with pytest.raises(RuntimeError): extract_features(model, torch.zeros(2, 3, 8, 4, dtype=torch.uint8))
    assert all(m.training for m in model.modules())


def test_show_ranked_lists():
    import matplotlib.pyplot as plt
    images = torch.zeros(5, 3, 12, 4, dtype=torch.uint8)
    index, right = np.array([[0, 3, -1]]), np.array([[True, False, False]])
    fig = show_ranked_lists(images, images, [2], index, right, ["AP"])
    assert len(fig.axes) == 4 and [len(ax.images) for ax in fig.axes] == [1, 1, 1, 0]
    styles = [(ax.spines["left"].get_edgecolor(), ax.spines["left"].get_linestyle()) for ax in fig.axes[1:3]]
    assert styles[0] != styles[1] and styles[0][1] != styles[1][1]
    plt.close(fig)


def test_memory_is_bounded(monkeypatch):
    "No tensor of distances is larger than `chunk_mb`."
    import gcutmix.evaluation as ev
    seen, distance_to = [], ev.distance_to
    def spy(*args):
        to = distance_to(*args)
        def call(q, out=None):
            d = to(q, out)
            seen.append(d.numel()*d.element_size())
            return d
        return call
    monkeypatch.setattr(ev, "distance_to", spy)
    six = people(Q=300, G=1000)
    single = six[0].float(), *six[1:3], six[3].float(), *six[4:]
    for more, size in ((single, 4), ((six[0].double(), *single[1:]), 8)): # the wider type decides
        seen.clear()
        evaluate(*more, chunk_mb=.1)
        assert len(seen) == -(-300//(int(.1*2**20)//(size*1000))) and max(seen) <= .1*2**20


def test_console_script_options():
    from gcutmix.evaluation import gcutmix_evaluate
    assert {"model", "dataset", "root", "out", "flip", "l2", "metric", "ap_max_rank", "rerank"} <= set(inspect.signature(gcutmix_evaluate).parameters)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    q, qp, qc, g, gp, gc = people(seed=6)
    q, g = (8*q).round().float(), (8*g).round().float()
    ap = evaluate(q, qp, qc, g, gp, gc).ap
    for device, query in (("cuda", q), (None, q.cuda())): np.testing.assert_allclose(evaluate(query, qp.cuda(), qc, g, gp, gc, device=device).ap, ap, rtol=1e-12)
    again = [evaluate(q, qp, qc, g, gp, gc, rerank=True, device=d).mAP for d in ("cpu", "cuda")]
    assert again[0] == pytest.approx(again[1], abs=1e-3)
    images = torch.randint(0, 256, (10, 3, 8, 4), dtype=torch.uint8)
    assert extract_features(nn.Flatten(), images, device="cuda").device.type == "cpu"
    assert extract_features(Counts().cuda(), images).device.type == "cpu"
