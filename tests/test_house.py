"The layout holds: imports go down, never in a circle; no module is too long or too wide."
import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gcutmix
from conftest import ROOT

# From below. A wing (a folder) is one floor; inside it no circle is allowed.
FLOORS = """base drawn pedestrians data images gradcam blocks cutmix losses samplers config phases
ingredients variants model guards evaluation training layer gallery export card rivals study
bench doctor commands""".split()
# imports that no reader of imports sees
LATE = {"resolve_name", "import_module", "__import__", "run_module", "run_path", "_import"}
# module: why it may have more than 200 lines
LONG = {"gcutmix.training": "step, epoch and fit are read in one piece; 40 lines are cell marks",
        "gcutmix.model": "backbone, head and network are read in one piece; 30 are cell marks"}
WIDE = 100


def modules(package):
    "Name -> path of every module of a package but its generated index."
    paths = [p for p in package.rglob("*.py") if p.name not in ("_modidx.py", "__init__.py")]
    return {".".join(p.relative_to(package.parent).with_suffix("").parts): p for p in paths}


def imports(name, text):
    "Modules or names, absolute, that a text imports anywhere: at the top or in a function."
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            above = name.split(".")[:-node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return {target for target in found if target.split(".")[0] == name.split(".")[0]}


def late(text):
    "Ways around an import statement that a text names anywhere; exec is one of them."
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name): found.add(node.id)
        if isinstance(node, ast.Attribute): found.add(node.attr)
        if isinstance(node, ast.Constant) and node.value in LATE: found.add(node.value)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.name.rpartition(".")[2] for alias in node.names}
    return found & (LATE | {"exec"})


def behind_the_face(target):
    "Where a name that the package hands on stands; the package itself is above everything."
    package, *name = target.split(".")
    if name == ["__version__"]: return target
    if not name: return f"{package}.commands"
    return f"{package}.{gcutmix._MODULE[name[0]]}" if name[0] in gcutmix._MODULE else target


def house(sources):
    "module -> modules of the same package that it imports; a name is counted to its module."
    rooms = {}
    for name, text in sources.items():
        rooms[name] = set()
        for target in imports(name, text):
            target = behind_the_face(target)
            while target and target not in sources: target = target.rpartition(".")[0]
            if target and target != name: rooms[name].add(target)
    return rooms


def upwards(rooms):
    "(module, import) pairs that do not go to a lower floor, or to the same wing."
    def wing(name): return name.split(".")[1]
    return [(a, b) for a, targets in sorted(rooms.items()) for b in sorted(targets)
            if wing(a) != wing(b) and FLOORS.index(wing(a)) <= FLOORS.index(wing(b))]


def circles(rooms):
    "(module, import) pairs from which a way leads back."
    def reached(start):
        seen, todo = set(), [start]
        while todo:
            new = rooms[todo.pop()] - seen
            seen |= new
            todo += new
        return seen
    pairs = [(a, b) for a, targets in sorted(rooms.items()) for b in sorted(targets)]
    return [(a, b) for a, b in pairs if a in reached(b)]


SOURCES = {name: path.read_text() for name, path in modules(ROOT/"gcutmix").items()}


def test_every_room_has_a_floor():
    assert {name.split(".")[1] for name in SOURCES} <= set(FLOORS)


def test_no_import_goes_up(): assert not upwards(house(SOURCES))


def test_nothing_goes_round_in_a_circle(): assert not circles(house(SOURCES))


def test_the_only_late_import_builds_a_network():
    found = {name: late(text) for name, text in SOURCES.items() if late(text)}
    assert found == {"gcutmix.model": {"resolve_name"}}
    assert SOURCES["gcutmix.model"].count("resolve_name") == 2 # its import and its call
    tree = ast.parse(SOURCES["gcutmix.model"])
    function = next(f for f in tree.body if getattr(f, "name", "") == "create_model")
    assert "resolve_name(" in ast.unparse(function)


def test_wings_have_no_face():
    "Their __init__ holds nothing, so that nothing hides there."
    for path in (ROOT/"gcutmix").glob("*/__init__.py"): assert not path.read_text().strip()
    face = ast.walk(ast.parse((ROOT/"gcutmix"/"__init__.py").read_text()))
    nodes = [node for node in face if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [node.module for node in nodes] == ["importlib"]


@pytest.mark.parametrize("text", ["from importlib import import_module as load", "exec('x')",
                                  "from gcutmix import _import", "getattr(x, 'import_module')",
                                  "map(pkgutil.resolve_name, names)", "runpy.run_module('x')"])
def test_a_way_around_is_seen(text): assert late(text)


def test_the_package_itself_is_above_everything():
    made_up = {"gcutmix.data": "import gcutmix", "gcutmix.commands": ""}
    assert upwards(house(made_up)) == [("gcutmix.data", "gcutmix.commands")]


@pytest.mark.parametrize("line", ["from gcutmix.training import fit", "from .training import fit",
                                  "from . import training", "import gcutmix.training",
                                  "from gcutmix.training import (\n    fit,\n)",
                                  "from gcutmix import fit", "from . import fit",
                                  "def f():\n    from gcutmix import fit",
                                  "def f():\n    from .training import fit"])
def test_an_import_upwards_is_seen(line):
    made_up = {"gcutmix.data": line, "gcutmix.training": ""}
    assert upwards(house(made_up)) == [("gcutmix.data", "gcutmix.training")]


def test_a_circle_in_a_wing_is_seen():
    made_up = {"gcutmix.study.a": "from .b import x", "gcutmix.study.c": "import gcutmix.study.a",
               "gcutmix.study.b": "def f():\n    from . import c"}
    assert len(circles(house(made_up))) == 3 and not upwards(house(made_up))


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_modules_are_short_and_narrow(name):
    lines = SOURCES[name].splitlines()
    assert len(lines) <= 200 or name in LONG, f"{name} has {len(lines)} lines"
    generated = next(i for i, line in enumerate(lines) if line.startswith("# %% auto"))
    end = next((i for i, line in enumerate(lines[generated + 1:]) if line.startswith("# %%")), 0)
    own = lines[:generated] + lines[generated + 1 + end:]
    assert not [line for line in own if len(line) > WIDE]


def test_exceptions_are_needed():
    for name in LONG: assert len(SOURCES[name].splitlines()) > 200


FORBIDDEN = ("matplotlib", "IPython", "pandas", "scipy", "h5py", "psutil")


LIGHT = "training evaluation commands study.paper study.tables study.runs study.raw study.attention"


def test_training_and_ranking_load_nothing_that_draws():
    modules = ", ".join(f"gcutmix.{name}" for name in LIGHT.split())
    code = f"import sys, {modules}; print([m for m in {FORBIDDEN} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_face_loads_nothing_until_it_is_asked():
    code = "import sys, gcutmix; print('torch' in sys.modules, len(dir(gcutmix)) > 20)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True"


def test_the_face_hands_on_what_it_names():
    for name, module in gcutmix._MODULE.items():
        value = getattr(gcutmix, name)
        assert value.__module__ == f"gcutmix.{module}" and value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"): gcutmix.nothing


def test_the_other_files_are_narrow_too():
    wide = {path.name: max(map(len, path.read_text().splitlines())) for path in
            [*(ROOT/"tests").glob("*.py"), *(ROOT/".ci").glob("*.py"), ROOT/"setup.py"]}
    assert not {name: width for name, width in wide.items() if width > WIDE}


STABLE = """gradcam.grad_cam gradcam.pooled_grad_cam blocks.block_scores blocks.block_mask
cutmix.sample_partners cutmix.feature_cutmix cutmix.batch_dropblock losses.batch_hard_triplet
samplers.PKSampler samplers.PKSampler.set_epoch model.create_model training.TrainConfig
training.make_preset training.fit training.Trainer training.Trainer.train_step
evaluation.evaluate evaluation.extract_features data.load_dataset images.load_images
pedestrians.write_pedestrians study.attention.branch_maps""".split()


@pytest.mark.parametrize("name", STABLE)
def test_stable_names_are_where_they_are(name):
    from pkgutil import resolve_name
    assert callable(resolve_name(f"gcutmix.{name}"))


def test_a_step_has_what_readers_use():
    import torch
    model = gcutmix.create_model("PC2", 4, "tiny", dim=8)
    labels = torch.arange(4).repeat_interleave(2)
    steps = model(torch.randn(8, 3, 96, 32), labels, gcutmix.keyed_generator(0))
    for step in steps:
        assert step.features.shape[2:] == (24, 8) and step.pooled.shape == (8, 128)
        assert step.embedding.shape == (8, 8) and step.logits.shape == (8, 4)
    assert [step.mask is None for step in steps] == [True, False, False]
