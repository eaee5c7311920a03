"The site: every link leads somewhere, every picture is there, and no other host is asked."
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import pytest
import torch
from filelock import FileLock
from PIL import Image

from conftest import ROOT
from gcutmix.blocks import block_mask
from gcutmix.model import load_model

pytestmark = pytest.mark.slow
FOREIGN = re.compile(r"(https?:)?//")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The built site; one process builds, the others wait for it."
    for name in ("sphinx", "myst_nb", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is missing: make site installs it")
    if not shutil.which("npm"): pytest.skip("npm is missing, which brings MathJax")
    base = tmp_path_factory.getbasetemp()
    built = (base.parent if base.name.startswith("popen-") else base)/"site-is-built"
    with FileLock(f"{built}.lock"):
        if not built.exists():
            done = subprocess.run([sys.executable, ROOT/".ci"/"site"/"build.py"],
                                  capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            built.touch()
    return ROOT/"_site"


class Page(HTMLParser):
    "What a page names: its anchors, what it links to, and what it loads."

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads, self.silent = {""}, set(), set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, pairs):
        attributes = dict(pairs)
        if "id" in attributes: self.anchors.add(attributes["id"])
        if tag == "a" and "href" in attributes: self.links.add(attributes["href"])
        if tag == "link": self.loads.add(attributes["href"])
        if "src" in attributes: self.loads.add(attributes["src"])
        if tag == "img" and not attributes.get("alt"): self.silent.append(attributes["src"])


def crawl(folder):
    "(page, what is wrong with it) of every page of a site."
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(folder).as_posix()
        found += [(where, f"no alternative text: {source}") for source in page.silent]
        found += [(where, f"foreign: {target}") for target in page.loads if FOREIGN.match(target)]
        for target in page.links | page.loads:
            if FOREIGN.match(target) or target.startswith(("data:", "mailto:")): continue
            file, anchor = urldefrag(target)
            file = (path.parent/unquote(file.partition("?")[0])).resolve() if file else path
            if not file.is_file(): found.append((where, f"leads nowhere: {target}"))
            elif file in pages and unquote(anchor) not in pages[file].anchors:
                found.append((where, f"no such anchor: {target}"))
    return found


def test_every_link_of_the_site_leads_somewhere(site):
    assert not crawl(site)
    assert len(list(site.rglob("*.html"))) > 150


def test_style_sheets_ask_no_other_host(site):
    for path in site.rglob("*.css"):
        loads = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", path.read_text())
        assert not [target for target in loads if FOREIGN.match(target)], path


@pytest.mark.parametrize("body, wrong", [
    ("<a href='b.html'>", "leads nowhere: b.html"), ("<a href='#x'>", "no such anchor: #x"),
    ("<a href='a.html#x'>", "no such anchor: a.html#x"),
    ("<img alt='x' src='x.png'>", "leads nowhere: x.png"),
    ("<img src='a.html'>", "no alternative text: a.html"),
    ("<script src='https://x.org/x.js'>", "foreign: https://x.org/x.js"),
    ("<link href='//x.org/x.css'>", "foreign: //x.org/x.css")])
def test_the_crawl_sees(tmp_path, body, wrong):
    (tmp_path/"a.html").write_text(f"<p id='y'>{body}")
    assert crawl(tmp_path) == [("a.html", wrong)]


def test_without_npm_one_line_says_so(tmp_path):
    shutil.copytree(ROOT/".ci"/"site", tmp_path/".ci"/"site")
    shutil.copy(ROOT/"settings.ini", tmp_path)
    line = [sys.executable, tmp_path/".ci"/"site"/"build.py"]
    done = subprocess.run(line, capture_output=True, text=True,
                          env={**os.environ, "PATH": ""})
    assert done.returncode == 1
    assert done.stderr == "make site: no npm, which brings MathJax; install Node.js\n"


DEFINED = """
def f(
    a, b=2, # (N,) each
    *rest,  # what is
            # left over
    c="x|y", # `p|q`, <r>
):          # (N,h,w)
    "Text."
"""


def test_the_reference_reads_comments(monkeypatch):
    monkeypatch.syspath_prepend(ROOT/".ci"/"site")
    import reference
    comments, node = reference.comments_of(DEFINED), ast.parse(DEFINED).body[0]
    rows = reference.parameters(node, comments)
    assert [(name, comment) for name, _, comment in rows] == [
        ("a", "(N,) each"), ("b", "(N,) each"), ("rest", "what is left over"),
        ("c", "`p|q`, <r>"), ("returns", "(N,h,w)")]
    assert reference.table(rows).splitlines()[-2:] == [
        r"| `c` = `'x\|y'` | `p\|q`, \<r\> |", "| *returns* | (N,h,w) |"]


# Debian's, or any that is found: playwright's own is not downloaded
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
QUIET = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update
--disable-background-networking --disable-sync""".split()


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    if not CHROMIUM: pytest.skip("chromium is missing")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    "Open a page of a site in a window; what it asks for, and its errors, are noted."
    windows = []

    def open_page(path, width=1400, scheme="light"):
        window = browser.new_context(viewport=dict(width=width, height=900), color_scheme=scheme)
        windows.append(window)
        tab = window.new_page()
        tab.asked, tab.errors = [], []
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.goto(path.as_uri())
        return tab
    yield open_page
    for window in windows: window.close()


SEEN = """async () => {
  if (window.MathJax) await MathJax.startup.promise;
  const images = [...document.images];
  await Promise.all(images.map(image => image.decode().catch(() => 0)));
  const count = selector => document.querySelectorAll(selector).length;
  return {missing: images.filter(image => !image.naturalWidth).map(image => image.src),
          not_set: count(".math") - count("mjx-container") + count("[data-mjx-error]"),
          too_wide: [document.documentElement, document.querySelector(".content")]
            .some(box => box && box.scrollWidth > box.clientWidth)};
}"""


def test_a_phone_shows_every_page_and_asks_no_other_host(site, visit):
    fine, tab = dict(missing=[], not_set=0, too_wide=False), visit(site/"index.html", 390)
    wrong = {}
    for path in sorted(site.rglob("*.html")):
        tab.goto(path.as_uri())
        if (seen := tab.evaluate(SEEN)) != fine: wrong[path.name] = seen
    assert not wrong and not tab.errors
    assert not [url for url in tab.asked if not url.startswith(("file:", "data:"))]


def test_the_eye_sees_light_and_dark(site, visit):
    ground = "getComputedStyle(document.body).backgroundColor"
    shades = {scheme: visit(site/"index.html", scheme=scheme).evaluate(ground)
              for scheme in ("light", "dark")}
    light, dark = (int(re.search(r"\d+", shades[scheme])[0]) for scheme in ("light", "dark"))
    assert light > 200 and dark < 50


def test_search_finds_chapter_and_reference(site, visit):
    tab = visit(site/"search.html")
    tab.goto(f"{(site/'search.html').as_uri()}?q=block_mask")
    tab.wait_for_selector("#search-results li a")
    tab.wait_for_function("document.querySelectorAll('#search-results li').length > 2")
    hits = tab.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    assert any("api/gcutmix.blocks.html" in hit for hit in hits)
    assert any("03_block_ranking.html" in hit for hit in hits)


def test_chapters_follow_each_other(site, visit):
    tab = visit(site/"02_gradcam.html")
    tab.click(".next-page")
    assert tab.url.endswith("03_block_ranking.html")
    assert "#| hide" not in tab.inner_text("article") and tab.locator("text=gcutmix.blocks").count()


# the first cell of each block: the number stands in the middle
DRAWN = """([height, width]) => {
  const context = document.querySelector("#mask canvas").getContext("2d");
  const blocks = [];
  for (let y = 0; y < 24; y += height) for (let x = 0; x < 8; x += width)
    blocks.push(context.getImageData(x*8 + 2, y*8 + 2, 1, 1).data[0]);
  return blocks;
}"""


def play(visit, site, width=1400):
    tab = visit(site/"play.html", width)
    tab.wait_for_selector("#play[data-ready]")
    return tab, json.loads(tab.inner_text("#play-data"))


def slide(tab, name, value):
    tab.eval_on_selector(f"#{name}", "(slider, value) => { slider.value = value; "
                         "slider.dispatchEvent(new Event('input')); }", value)


@pytest.mark.parametrize("person", [0, 12])
def test_the_mask_to_play_with_is_that_of_the_library(site, visit, person):
    tab, data = play(visit, site)
    tab.check(f"#people input[value='{person}']")
    cam = torch.tensor(data["maps"]["G"][person]).view(1, 24, 8)
    for i, block in enumerate(data["blocks"]):
        slide(tab, "block", i)
        blocks = 192//(block[0]*block[1])
        for k in {0, 1, blocks//5, blocks//2, max(blocks - 3, 0), blocks}: # ties among zeros
            slide(tab, "k", k)
            mask = block_mask(cam.double(), k, block)[0, 0, ::block[0], ::block[1]] > 0
            drawn = torch.tensor(tab.evaluate(DRAWN, block)) > 128
            assert torch.equal(drawn, mask.flatten()), (block, k)
            assert f"{k} of {blocks} blocks" in tab.inner_text("#k-says")


def test_the_maps_to_play_with_are_those_of_the_network(site, visit):
    _, data = play(visit, site)
    model, _ = load_model(ROOT/"results"/"pedestrians"/"PC2-tiny-s0.safetensors")
    assert (data["k"], tuple(data["block"])) == (model.options.k, tuple(model.options.block))
    assert list(data["maps"]) == ["G", "AC1", "AC2"] and len(data["people"]) == 16
    for maps in data["maps"].values(): assert {max(each) for each in maps} <= {0, 9999}
    assert all(partner != i for i, partner in enumerate(data["partners"]))


def test_keys_move_people_and_sliders_on_a_phone_too(site, visit):
    tab, data = play(visit, site, 390)
    before = tab.inner_text("#says")
    tab.focus("#k")
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#k-says") == f"{data['k'] + 1} of 32 blocks"
    assert tab.inner_text("#says") != before
    tab.focus("#people input:checked")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#people input:checked").get_attribute("value") == "1"
    assert "person 2" in tab.get_attribute("#person canvas", "aria-label")
    right = data["lists"]["PC2, three branches"]["right"][1]
    words = [f"{place}: {'same' if ok else 'other'}" for place, ok in enumerate(right, 1)]
    assert tab.locator("#lists ol").nth(1).locator("li span").all_inner_texts() == words
    assert not tab.errors


def test_the_animation_is_small_and_shows_each_epoch():
    path = ROOT/"nbs"/"images"/"branches.webp"
    with Image.open(path) as picture: assert picture.n_frames == 31
    assert path.stat().st_size <= 500_000


def test_the_animation_can_be_drawn_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT/".ci"/"site")
    import animation
    short = partial(animation.make_preset, epochs=1, warmup=0, decay_at=(), eval_every=0)
    monkeypatch.setattr(animation, "make_preset", short)
    people, story = animation.train(tmp_path)
    assert len(story) == 2 and [len(looks) for looks in story] == [3, 3]
    assert not torch.equal(story[0][0][0], story[1][0][0])
    first, last = (animation.frame(people, looks, i, 1) for i, looks in enumerate(story))
    assert first.size == last.size and first.tobytes() != last.tobytes()
