"""JupyterLab in a real browser: what is opened is as it was saved, what is run ends without an
error and without a red box, sliders answer, links lead on. Needs chromium and playwright."""
import json
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import matplotlib.pyplot as plt
import pytest

from conftest import ROOT
from gcutmix.base import sliders
from test_notebooks import LEFT_OUT, NOTEBOOKS, cells, number, run, source

names = "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next(filter(None, map(shutil.which, names)), None)
MAIN = [name for name in NOTEBOOKS if name != "index.ipynb" and number(name) < 10]
# Run again, these are other files; the rest of the main line is the same, letter by letter.
CHANGING = {"02_gradcam.ipynb": "the milliseconds of Grad-CAM at the map and at the pooled vector",
            "10_train_cuhk03.ipynb": "the hours of its trainings",
            "60_speed.ipynb": "the speed of the machine, measured for its page",
            "65_parts.ipynb": "the seconds of each part, and their figure",
            "93_on_paper.ipynb": "the seconds of faiss and of ours"}
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update"]
QUIET = {"fetchNews": "false", "checkForUpdates": False}


# What happens in the page. `jupyterapp` is JupyterLab itself.
OPEN = """async path => {
    const widget = await jupyterapp.commands.execute('docmanager:open', {path});
    await widget.context.ready;
    await widget.sessionContext.ready;
    await widget.sessionContext.session.kernel.info;
}"""
RUN = """async () => {
    const late = new Promise((_, no) => setTimeout(() => no(Error('15 minutes')), 900000));
    await Promise.race([jupyterapp.commands.execute('notebook:run-all-cells'), late]);
    await jupyterapp.commands.execute('docmanager:save');
}"""
RUN_ONE = """async id => {
    const notebook = jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = notebook.widgets.findIndex(cell => cell.model.id == id);
    await notebook.scrollToItem(notebook.activeCellIndex);
    await jupyterapp.commands.execute('notebook:run-cell');
}"""
SHOW = """async id => {
    const notebook = jupyterapp.shell.currentWidget.content;
    await notebook.scrollToItem(notebook.widgets.findIndex(cell => cell.model.id == id), 'center');
}"""
THEME = "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})"
PATH = "() => jupyterapp.shell.currentWidget.context.path"
CELLS = "() => jupyterapp.shell.currentWidget.content.model.toJSON().cells"
CLOSE = """async () => {
    for (const widget of [...jupyterapp.shell.widgets('main')]) {
        if (!widget.sessionContext) continue;
        await widget.sessionContext.shutdown();
        await widget.context.revert();
        widget.close();
    }
}"""


def test_without_a_server_or_widgets_there_is_a_picture(monkeypatch):
    shown = []
    monkeypatch.setattr(sliders, "display", lambda figure, **_: shown.append(figure))
    draw = lambda k=3: plt.figure() # noqa: E731
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    sliders.play(draw, k=(0, 9))
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    monkeypatch.setattr(sliders, "ipywidgets", None)
    sliders.play(draw, k=(0, 9))
    assert [type(figure) for figure in shown] == [plt.Figure, plt.Figure]


class Shell:
    "As much of IPython as sliders ask for."
    def __init__(self): self.events, self.waiting = self, []
    def register(self, name, function): self.waiting.append(function)
    def unregister(self, name, function): self.waiting.remove(function)


class Place(list):
    update = list.append


def test_sliders_call_the_function_and_make_way_for_the_picture(monkeypatch):
    pytest.importorskip("ipywidgets")
    place, shell, calls = Place(), Shell(), []
    monkeypatch.setattr(sliders, "display", lambda figure, **_: place.append(figure) or place)
    monkeypatch.setattr(sliders, "get_ipython", lambda: shell)
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    def draw(k=3, block=(4, 4)):
        calls.append((k, block))
        return plt.figure()
    sliders.play(draw, k=(0, 9), block=[(3, 2), (4, 4)])
    picture, board = place
    k, block = board.children[:2]
    assert (k.value, k.min, k.max, block.value, block.label) == (3, 0, 9, (4, 4), "4x4")
    k.value = 5
    block.label = "3x2"
    assert calls[0] == (3, (4, 4)) and calls[-2:] == [(5, (4, 4)), (5, (3, 2))]
    for call in list(shell.waiting): call(None)
    assert place[-1] is picture and not shell.waiting
    plt.close("all")


def kernel(prefix):
    "What `make` does, with a different prefix."
    line = next(line for line in (ROOT/"Makefile").read_text().splitlines() if "ipykernel" in line)
    words = line.replace("--prefix .venv", f"--prefix {prefix}").split()[1:]
    run(sys.executable, *words)


def serve(home, folder, token):
    "A JupyterLab on a copy of the repository, that knows nothing of whoever runs the tests."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run(sys.executable, "-c", "from nbdev.clean import nbdev_install_hooks as f; f.__wrapped__()",
        cwd=folder, HOME=str(home), PYTHONPATH=str(folder))
    (home/"notification.jupyterlab-settings").write_text(json.dumps(QUIET))
    settings = home/"settings"/"@jupyterlab"/"apputils-extension"
    settings.mkdir(parents=True)
    shutil.move(home/"notification.jupyterlab-settings", settings)
    kernel(home)
    path = os.pathsep.join([f"{home}/share/jupyter", os.environ.get("JUPYTER_PATH", "")])
    env = dict(JUPYTER_CONFIG_DIR=home/".jupyter", JUPYTERLAB_SETTINGS_DIR=home/"settings",
               JUPYTERLAB_WORKSPACES_DIR=home/"spaces", JUPYTER_DATA_DIR=home/"data",
               JUPYTER_RUNTIME_DIR=home/"run", JUPYTER_PATH=path, PYTHONPATH=folder)
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
               "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    with open(home/"said", "w") as said:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=folder,
                                  stdout=said, stderr=said,
                                  env=os.environ | {k: str(v) for k, v in env.items()})
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try: return server, url, urlopen(f"{url}/api", timeout=5).close()
        except OSError: time.sleep(.5)
    raise TimeoutError((home/"said").read_text()[-3000:])


class Lab:
    "A page with JupyterLab, and what was found in it."
    def __init__(self, page, folder, shots):
        self.page, self.folder, self.shots = page, folder, shots

    def open(self, name):
        self.page.evaluate(OPEN, f"nbs/{name}")
        self.page.wait_for_timeout(300) # what the kernel says of itself arrives

    def dirty(self): return self.page.locator(".jp-mod-dirty").count()

    def dialogs(self): return self.page.locator(".jp-Dialog").all_inner_texts()

    def sections(self):
        return self.page.locator(".jp-TableOfContents .jp-tocItem-content").all_inner_texts()

    def outputs(self): return [out for cell in self.page.evaluate(CELLS)
                               for out in cell.get("outputs", [])]

    def follow(self, name, target):
        "Click on the last link to a notebook."
        cell = [cell for cell in cells(name) if f"({target})" in source(cell)][-1]
        self.page.evaluate(SHOW, cell["id"])
        self.page.locator(f".jp-Notebook:visible a[href*='{target}']").last.click()
        self.page.wait_for_function(f"({PATH})() == 'nbs/{target}'")

    def shot(self, name): self.page.screenshot(path=self.shots/f"{name}.png")

    def close(self): self.page.evaluate(CLOSE)

    def changed(self):
        return set(run("git", "diff", "--name-only", "--relative=nbs", cwd=self.folder).split())


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    if not CHROMIUM: pytest.skip("there is no chromium")
    start = pytest.importorskip("playwright.sync_api", reason="needs gcutmix[browser]")
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("lab")/"gcutmix"
    left_out = shutil.ignore_patterns(".venv", ".git", "runs", "data", "build", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=left_out)
    for words in ("init -q", "add -A", "-c user.name=a -c user.email=a@b.c commit -qm all"):
        run("git", *words.split(), cwd=folder)
    token = secrets.token_hex()
    server, url, _ = serve(home, folder, token)
    with start.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page(viewport=dict(width=1400, height=900))
        page.set_default_timeout(120_000)
        page.goto(f"{url}/lab?token={token}&reset")
        page.wait_for_function("window.jupyterapp && jupyterapp.restored")
        page.evaluate("async () => { await jupyterapp.restored;"
                      "await jupyterapp.commands.execute('toc:show-panel') }")
        shots = Path(os.environ.get("GCUTMIX_SHOTS", home))
        yield Lab(page, folder, shots)
        browser.close()
    server.send_signal(signal.SIGTERM)
    server.wait(60)


def headings(name):
    "Of text and of shown Markdown, as the contents panel should list them."
    texts = []
    for cell in cells(name):
        if cell["cell_type"] == "markdown": texts.append(source(cell))
        for out in cell.get("outputs", []):
            texts.append("".join(out.get("data", {}).get("text/markdown", [])))
    texts = [re.sub(r"```.*?```", "", text, flags=re.S) for text in texts]
    return re.findall(r"^#+ +(.*?) *$", "\n".join(texts), flags=re.M)


@pytest.mark.slow
def test_notebooks_open_as_they_were_saved(lab, capsys):
    "No unsaved dot, no dialog, and the contents panel lists the sections."
    wrong, since = {}, time.monotonic()
    for name in NOTEBOOKS:
        lab.open(name)
        found = lab.dirty(), lab.dialogs(), [said.strip() for said in lab.sections()]
        if found != (0, [], headings(name)): wrong[name] = found
        lab.close()
    with capsys.disabled():
        print(f"\n{len(NOTEBOOKS)} notebooks opened in {time.monotonic() - since:.0f} s")
    assert not wrong, "\n".join(map(str, wrong.items()))
    assert not lab.changed()


def as_executed(changed):
    "Python and the pictures are those of whoever executed the notebooks."
    metadata = json.loads((ROOT/"nbs"/MAIN[0]).read_text())["metadata"]
    same = metadata["language_info"]["version"] == platform.python_version()
    return same and MAIN[0] not in changed


@pytest.mark.slow
def test_the_main_line_runs_and_leads_on(lab, capsys):
    "Run all, save, and click on the next chapter: no error, no red box; only times have changed."
    bad, seconds = {}, {}
    for name, following in zip(MAIN, [*MAIN[1:], NOTEBOOKS[len(MAIN)]]):
        since = time.monotonic()
        lab.open(name)
        lab.page.evaluate(RUN)
        seconds[name] = round(time.monotonic() - since)
        bad[name] = [out for out in lab.outputs() if out["output_type"] == "error" or
                     out.get("name") == "stderr"] + lab.dialogs() + lab.dirty()*["unsaved"]
        lab.follow(name, following)
        lab.close()
    changed = lab.changed()
    with capsys.disabled():
        print(f"\nran and saved, in seconds: {seconds}; changed: {changed or 'nothing'}")
    assert not any(bad.values()), bad
    if as_executed(changed): assert changed <= set(CHANGING)
    run("git", "checkout", ".", cwd=lab.folder)


@pytest.mark.slow
def test_sliders_answer(lab):
    "Run all leaves a picture. A cell by itself has sliders, until the next one runs."
    name, page = "03_block_ranking.ipynb", lab.page
    here, after = [next(cell["id"] for cell in cells(name) if word in source(cell))
                   for word in ("play(cut", "live = cam")]
    lab.open(name)
    page.evaluate(RUN)
    saved = (lab.folder/"nbs"/name).read_text()
    assert "widget" not in json.dumps(json.loads(saved)["metadata"]) and "widget-view" not in saved
    page.evaluate(RUN_ONE, here)
    cell = page.locator(".jp-Cell.jp-mod-active")
    cell.locator(".noUi-handle").first.wait_for()
    cell.locator("img").wait_for()
    for handle, label in ((0, "7"), (1, "6x4")):
        before = cell.locator("img").get_attribute("src")
        cell.locator(".noUi-handle").nth(handle).focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("([img, src]) => img.isConnected ? img.src != src : true",
                               arg=[cell.locator("img").element_handle(), before])
        cell.locator(".widget-readout", has_text=label).wait_for()
        cell.locator(f"img:not([src='{before}'])").wait_for()
    lab.shot("sliders")
    page.evaluate(RUN_ONE, after)
    page.evaluate(SHOW, here)
    page.locator(".noUi-handle").first.wait_for(state="detached")
    page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    assert (lab.folder/"nbs"/name).read_text() == saved
    lab.close()


@pytest.mark.slow
def test_pages_fit_desktop_and_phone(lab):
    "Screenshots to look at, in $GCUTMIX_SHOTS; on a phone, the text has the whole width."
    for width, height in ((1400, 900), (390, 844)):
        lab.page.set_viewport_size(dict(width=width, height=height))
        if width < 400: lab.page.evaluate("() => jupyterapp.shell.collapseLeft()")
        for theme in ("Light", "Dark"):
            lab.page.evaluate(THEME, f"JupyterLab {theme}")
            for name in ("index.ipynb", "03_block_ranking.ipynb"):
                lab.open(name)
                lab.page.wait_for_timeout(2000)
                lab.shot(f"{Path(name).stem}-{width}-{theme.lower()}")
                title = lab.page.locator(".jp-Notebook:visible h1").first.bounding_box()
                assert title["x"] + title["width"] <= width and title["width"] > .6*width
                lab.close()
