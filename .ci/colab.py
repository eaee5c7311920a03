"""Copies of the notebooks for Colab and Binder, where a public address is configured: their first
cell fetches the repository, whose results the chapters draw, and installs it without nbdev.

usage: colab.py FOLDER
"""
import json, shutil, sys
from pathlib import Path

from readme import PUBLIC, ROOT

INSTALL = """# Colab and Binder begin with nothing: the repository, its library, and its folder.
!git clone -q --depth 1 {url} gcutmix
%pip install -q './gcutmix[study,bench,raw,classify]'
%cd gcutmix/nbs"""


def with_install(notebook, url):
    "A notebook that can be run where nothing is installed."
    cell = dict(cell_type="code", id="install", metadata={}, outputs=[], execution_count=None,
                source=INSTALL.format(url=url))
    return notebook | dict(cells=[cell, *notebook["cells"]])


def main(folder):
    if not PUBLIC: sys.exit("git_url in settings.ini is empty: nobody could fetch the repository")
    if folder.exists(): sys.exit(f"{folder} exists: give a new folder")
    (folder/"nbs").mkdir(parents=True)
    for path in sorted((ROOT/"nbs").glob("*.ipynb")):
        notebook = with_install(json.loads(path.read_text(encoding="utf-8")), PUBLIC)
        text = json.dumps(notebook, ensure_ascii=False, indent=1)
        (folder/"nbs"/path.name).write_text(text, encoding="utf-8")
    shutil.copytree(ROOT/"nbs"/"images", folder/"nbs"/"images")
    # what Binder installs beforehand
    (folder/"requirements.txt").write_text("jupyterlab\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit(__doc__)
    main(Path(sys.argv[1]))
