"The data of the page to play with: maps and ranked lists of the committed networks."
import base64
import json
import tempfile
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

from gcutmix.base.pictures import BRANCHES, HEAT, RIGHT, WRONG
from gcutmix.cutmix import sample_partners
from gcutmix.data import load_dataset
from gcutmix.evaluation import extract_features, ranked_list
from gcutmix.images import keyed_generator, load_images
from gcutmix.model import load_model
from gcutmix.pedestrians import draw, scene_of, write_pedestrians
from gcutmix.study.maps import branch_maps, branch_names
from pages import ROOT

NETWORKS = {"G": "G, one branch", "PC2": "PC2, three branches"}
BLOCKS = (1, 1), (2, 1), (2, 2), (3, 2), (4, 2), (4, 4), (6, 4), (8, 4), (12, 8)
LARGE = 192, 64 # the sixteen, drawn larger than the 96x32 that a network sees
TOP = 9999      # maps are whole numbers up to this: sums are exact, in Python and in JavaScript


def picture(image):
    "A JPEG as a text that a page can show."
    data = BytesIO()
    Image.fromarray(np.asarray(image)).save(data, "jpeg", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def whole(maps):
    "(N,h,w) maps as lists of whole numbers, the highest of each map is `TOP`."
    highest = maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
    return (maps/highest*TOP).round().int().flatten(1).tolist()


def lists(model, images, splits, first, places=5):
    "The nearest pictures of all 300 people for each of the sixteen, and which are right."
    features = {name: extract_features(model, x) for name, x in images.items()}
    gallery = torch.cat([features["train"], features["gallery"]])
    pids, camids = (np.concatenate([getattr(splits[name], key) for name in ("train", "gallery")])
                    for key in ("pids", "camids"))
    query = features["train"][first], splits["train"].pids[first], splits["train"].camids[first]
    return ranked_list(*query, gallery, pids, camids, np.arange(len(first)), places)


def play_data():
    "Everything that the page shows, as a dict for JSON."
    models = {name: load_model(ROOT/"results"/"pedestrians"/f"{name}-tiny-s0.safetensors")[0]
              for name in NETWORKS}
    with tempfile.TemporaryDirectory() as folder:
        data = load_dataset("pedestrians", write_pedestrians(Path(folder)/"pedestrians"))
        splits = dict(train=data.train, gallery=data.gallery)
        images = {name: load_images(split, (96, 32), progress=False)
                  for name, split in splits.items()}
        first = np.flatnonzero(np.diff(data.train.labels, prepend=-1))[:16]
        scenes = [scene_of(data.train.paths[i])[:-1] for i in first]
    labels = torch.tensor(data.train.labels)[first]
    everybody = torch.cat([images["train"], images["gallery"]]).permute(0, 2, 3, 1)
    found = {name: lists(model, images, splits, first) for name, model in models.items()}
    needed = sorted({int(i) for index, _ in found.values() for i in index.flat})
    maps = branch_maps(models["PC2"], images["train"][torch.from_numpy(first)], labels)
    options = models["PC2"].options
    return dict(
        height=maps[0].shape[1], width=maps[0].shape[2], k=options.k, block=list(options.block),
        blocks=BLOCKS, people=[picture(draw(*scene, LARGE)) for scene in scenes],
        partners=sample_partners(labels, generator=keyed_generator(2)).tolist(),
        maps=dict(zip(branch_names(models["PC2"]), map(whole, maps))),
        gallery={i: picture(everybody[i]) for i in needed},
        lists={NETWORKS[name]: dict(index=index.tolist(), right=right.tolist())
               for name, (index, right) in found.items()},
        colours=dict({name: BRANCHES[name] for name in branch_names(models["PC2"])},
                     right=RIGHT, wrong=WRONG),
        heat=[matplotlib.colors.to_hex(matplotlib.colormaps[HEAT](i/63)) for i in range(64)])


def play_page(here):
    "The page in MyST, with data and script inside: it needs no server."
    data = json.dumps(play_data(), separators=(",", ":"))
    html = (here/"play.html").read_text(encoding="utf-8").replace("{data}", data)
    return ("# Try it\n\nWhere does a network look, which blocks are cut out, and what do the "
            "next branches look at then? Nothing is computed but Eq. 2, in your browser: "
            "[the blocks](03_block_ranking.ipynb) of heat maps that were "
            "[measured](29_maps.ipynb) before.\n\n"
            f"```{{raw}} html\n{html}\n```\n")
