"""Build the site into _site: pages from the saved notebooks, the reference, MathJax from npm.

usage: build.py
"""
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from pages import ROOT, write_pages
from play import play_page
from reference import write_reference

HERE, SITE = Path(__file__).resolve().parent, ROOT/"_site"
BUILD = ROOT/"build"
MATHJAX = "mathjax@3.2.2" # in version 4 no single file holds all letters


def fetch_mathjax(kept):
    "MathJax in one file, its letters inside: nothing is asked of other hosts."
    npm = shutil.which("npm")
    if npm is None: sys.exit("make site: no npm, which brings MathJax; install Node.js")
    line = [npm, "pack", MATHJAX, "--silent", "--pack-destination", str(kept.parent)]
    if subprocess.run(line, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"make site: npm could not fetch {MATHJAX}, see above")
    archive = next(kept.parent.glob("mathjax-*.tgz"))
    with tarfile.open(archive) as files:
        kept.write_bytes(files.extractfile("package/es5/tex-svg-full.js").read())
    archive.unlink()


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main():
    BUILD.mkdir(exist_ok=True)
    mathjax = BUILD/f"{MATHJAX}.js" # kept from one call to the next
    if not mathjax.exists(): fetch_mathjax(mathjax)
    work = fresh(BUILD/"site")
    pages, static, html = (fresh(work/name) for name in ("pages", "static", "html"))
    shutil.copy(mathjax, static/"mathjax.js")
    for name in ("site.css", "play.js"): shutil.copy(HERE/name, static)
    write_pages(pages)
    (pages/"play.md").write_text(play_page(HERE), encoding="utf-8")
    write_reference(pages/"api")
    line = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "auto",
            "-c", HERE, "-d", work/"doctrees", pages, html]
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    if subprocess.run(line, env=env).returncode: sys.exit("make site: Sphinx warned, see above")
    shutil.rmtree(SITE, ignore_errors=True)
    html.rename(SITE)
    print(f"{SITE.name}: {len(list(SITE.rglob('*.html')))} pages; open {SITE.name}/index.html")


if __name__ == "__main__": main()
