"The chapters and the top level's texts as pages: links inside the site, code folded or left out."
import json
import re
import shutil
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
parser = ConfigParser(delimiters=["="])
parser.read(ROOT/"settings.ini", encoding="utf-8")
SETTINGS = parser["DEFAULT"]
TEXTS = {"CONTRIBUTING.md": ROOT/".github", "CHANGELOG.md": ROOT, "LOG.md": ROOT}
LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\(((?!https?:|mailto:|#)[^()\s]+)\)")


def text_of(cell): return "".join(cell["source"])


def parts(index):
    "Part -> its chapters, as the index lists them: a paragraph opens with the part in bold."
    found, part = {}, None
    for line in "\n".join(map(text_of, index["cells"])).splitlines():
        if bold := re.match(r"\*\*([^*]+)\*\*", line): part = bold[1]
        if not line.startswith("|") or part is None: continue
        for chapter in re.findall(r"\((\w+)\.ipynb\)", line):
            if not any(chapter in each for each in found.values()):
                found.setdefault(part, []).append(chapter)
    return found


def relink(text, pages):
    "Links lead to pages of the site; those to other files to the public address, if there is one."
    public = SETTINGS["git_url"].rstrip("/").removesuffix(".git")
    def lead(link):
        text, (target, *anchor) = link[1], link[2].split("#")
        name = Path(target).name.replace("README.md", "index.ipynb")
        if name in pages: return f"[{text}]({'#'.join([name, *anchor])})"
        file = re.sub(r"^(\.\./)+", "", target)
        return f"[{text}]({public}/blob/{SETTINGS['branch']}/{file})" if public else text
    return LINK.sub(lead, text.replace("](nbs/images/", "](images/"))


def toctree(caption, names):
    head = ["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), ""]
    return "\n".join([*head, *names, "```", ""])


def contents(index):
    "A cell that leads to the page to play with, and puts every page into the sidebar."
    listed = {"": ["play"], **parts(index), "The library": ["api/index"],
              "The project": [*TEXTS]}
    missing = {p.stem for p in (ROOT/"nbs").glob("[0-9]*.ipynb")} - set(sum(listed.values(), []))
    if missing: raise SystemExit(f"no part of the index lists {', '.join(sorted(missing))}")
    source = "\n".join(toctree(caption, names) for caption, names in listed.items())
    lead = "[Try it](play.md): pick a person, move k, and see which blocks go.\n\n"
    return dict(cell_type="markdown", id="contents", metadata={}, source=lead + source)


def shown(cell, section):
    "A code cell: hidden code is left out or folded, a picture says what it is."
    source, old, tags = text_of(cell), cell["metadata"], []
    if source.startswith("#| hide"): tags.append("remove-input")
    elif old.get("jupyter", {}).get("source_hidden"): tags.append("hide-input")
    alts = [kind["alt"] for output in cell["outputs"]
            for kind in output.get("metadata", {}).values() if "alt" in kind]
    alt = alts[0] if alts else f"Figure of the section “{section}”"
    return {**cell, "metadata": dict(old, tags=tags, mystnb=dict(image=dict(alt=alt)))}


def words(cell, text):
    "A cell of prose."
    return dict(cell_type="markdown", id=cell["id"], metadata={}, source=text)


def chapter(notebook, pages):
    "The notebook as the site shows it."
    cells, section = [], ""
    for cell in notebook["cells"]:
        if module := re.match(r"#\| default_exp (\S+)$", text_of(cell)):
            cells.append(words(cell, f"*Here we write* {{py:mod}}`gcutmix.{module[1]}`."))
        elif cell["cell_type"] == "code": cells.append(shown(cell, section))
        else:
            headings = re.findall(r"^#+ (.*)", text_of(cell), re.MULTILINE)
            section = headings[-1] if headings else section
            cells.append(words(cell, relink(text_of(cell), pages)))
    return {**notebook, "cells": cells}


def write_pages(folder):
    "All chapters and texts, into `folder`."
    notebooks = sorted((ROOT/"nbs").glob("*.ipynb"))
    pages = {path.name for path in notebooks} | set(TEXTS)
    shutil.copytree(ROOT/"nbs"/"images", folder/"images")
    for path in notebooks:
        page = chapter(json.loads(path.read_text(encoding="utf-8")), pages)
        if path.stem == "index": page["cells"].insert(1, contents(page))
        (folder/path.name).write_text(json.dumps(page), encoding="utf-8")
    for name, place in TEXTS.items():
        text = relink((place/name).read_text(encoding="utf-8"), pages)
        (folder/name).write_text(text, encoding="utf-8")
