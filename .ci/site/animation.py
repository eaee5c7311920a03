"""Draw nbs/images/branches.webp: where three branches look, epoch by epoch of a training.

usage: animation.py    (trains PC2 on the drawn people: a minute or two on one core)
"""
import tempfile
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from gcutmix.base.pictures import BRANCHES, outline, show_heat, show_image, use_style
from gcutmix.data import load_dataset
from gcutmix.images import load_images
from gcutmix.pedestrians import draw, scene_of, write_pedestrians
from gcutmix.study.maps import branch_maps, top_blocks
from gcutmix.training import fit, make_preset, seeded_model

FILE = Path(__file__).resolve().parents[2]/"nbs"/"images"/"branches.webp"
PEOPLE = 4       # of the sixteen who walk through the notebooks, the first
SIZE = 192, 64   # drawn larger than the 96x32 that the network sees


def looks_of(model, images, labels):
    "(map, top blocks) of every branch, for a few people."
    maps = branch_maps(model, images, labels)
    return [(cam, top_blocks(cam, model)) for cam in maps]


def train(folder):
    "The people at `SIZE`, and what `looks_of` says before the first epoch and after each."
    people = load_dataset("pedestrians", write_pedestrians(folder/"pedestrians")).train
    config = make_preset("demo", "pedestrians", variant="PC2", root=str(folder), device="cpu",
                         out=str(folder/"runs"))
    first = np.flatnonzero(np.diff(people.labels, prepend=-1))[:PEOPLE]
    images = load_images(people, config.size, progress=False)[torch.from_numpy(first)]
    labels = torch.tensor(people.labels)[first]
    story = [looks_of(seeded_model(config, people.num_pids), images, labels)]
    fit(config, on_epoch=lambda trainer, _: story.append(looks_of(trainer.network, images, labels)))
    scenes = [scene_of(people.paths[i])[:-1] for i in first]
    large = [torch.from_numpy(np.array(draw(*scene, SIZE))).permute(2, 0, 1) for scene in scenes]
    return large, story


def frame(people, looks, epoch, epochs):
    "One epoch: three panels per person."
    fig = plt.figure(figsize=(9.2, 2.6), dpi=90)
    groups = fig.subfigures(1, len(people), wspace=0)
    for i, (group, person) in enumerate(zip(groups, people)):
        axes = group.subplots(1, len(looks))
        group.subplots_adjust(left=.03, right=.97, top=.9, bottom=.08, wspace=.06)
        for ax, name, (maps, tops) in zip(axes, BRANCHES, looks):
            show_image(ax, person)
            show_heat(ax, maps[i], SIZE)
            outline(ax, tops[i], SIZE, color=BRANCHES[name])
            ax.set_title(name, fontsize=8, color=BRANCHES[name])
    fig.text(.5, .015, f"epoch {epoch} of {epochs}", ha="center", fontsize=9)
    drawn = BytesIO()
    fig.savefig(drawn)
    plt.close(fig)
    return Image.open(drawn).convert("RGB")


def main():
    use_style()
    with tempfile.TemporaryDirectory() as folder: people, story = train(Path(folder))
    frames = [frame(people, looks, i, len(story) - 1) for i, looks in enumerate(story)]
    times = [250]*(len(frames) - 1) + [3000]
    frames[0].save(FILE, save_all=True, append_images=frames[1:], duration=times, loop=0,
                   quality=40, method=6)
    print(f"{FILE.name}: {FILE.stat().st_size/1e3:.0f} kB, {len(frames)} frames")


if __name__ == "__main__": main()
