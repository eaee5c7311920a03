"""Grad-CAM guided progressive feature CutMix (arXiv 2007.08779), as a library.

What people type most is here, and loads when it is asked for:

    import gcutmix
    model = gcutmix.create_model("PC2", num_classes=767)
    run = gcutmix.fit(gcutmix.make_preset("demo", "pedestrians"))

Everything else is one module deeper: `gcutmix.gradcam` (Eq. 1), `gcutmix.blocks` (Eq. 2),
`gcutmix.cutmix` (Eq. 3), `gcutmix.losses`, `gcutmix.samplers`, `gcutmix.data`, `gcutmix.images`,
`gcutmix.model`, `gcutmix.evaluation`, `gcutmix.training`. `gcutmix.study` reproduces the paper's
tables, `gcutmix.bench` measures speed, and `gcutmix.base` holds what all of them share.
"""
__version__ = "0.5.0"

from importlib import import_module as _import

_WHERE = {
    "data": ["load_dataset"],
    "pedestrians": ["write_pedestrians"],
    "images": ["load_images", "augment", "keyed_generator"],
    "gradcam": ["grad_cam", "pooled_grad_cam"],
    "blocks": ["block_scores", "block_mask"],
    "cutmix": ["feature_cutmix", "sample_partners", "batch_dropblock"],
    "losses": ["batch_hard_triplet"],
    "samplers": ["PKSampler"],
    "config": ["TrainConfig", "make_preset"],
    "model": ["create_model", "load_model", "save_model"],
    "evaluation": ["evaluate", "extract_features", "ranked_list"],
    "training": ["fit"],
    "gallery": ["embed"],
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name):
    "Load a name from its module when it is first asked for."
    if name not in _MODULE: raise AttributeError(f"module 'gcutmix' has no attribute {name!r}")
    globals()[name] = getattr(_import(f"gcutmix.{_MODULE[name]}"), name)
    return globals()[name]


def __dir__(): return sorted({*__all__, *globals()})
