"The site: every link leads somewhere, every picture is there, and no other host is asked."
import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import pytest
from filelock import FileLock

from conftest import ROOT

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
    done = subprocess.run(line, capture_output=True, text=True, env=dict(PATH=""))
    assert done.returncode == 1
    assert done.stderr == "make site: no npm, which brings MathJax; install Node.js\n"
