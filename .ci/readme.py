"""Write README.md from nbs/index.ipynb: its prose, tables and pictures, without the code.

usage: readme.py [--check]    (--check writes nothing and fails if README.md or a picture differs)
"""
import base64, json, re, sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURES = ROOT/"nbs"/"images"
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT/"settings.ini", encoding="utf-8")
# the one place of the public address
PUBLIC = SETTINGS["DEFAULT"]["git_url"].rstrip("/").removesuffix(".git")


def elsewhere(url):
    "A line of links that open the chapters in Colab and Binder; nothing without an address."
    if not url: return ""
    place = url.rstrip("/").split("github.com/")[-1]
    colab = f"https://colab.research.google.com/github/{place}/blob/colab/nbs"
    binder = f"https://mybinder.org/v2/gh/{place}/colab?labpath=nbs"
    return (f"Without installing anything: [the first chapter in Colab]({colab}/00_data.ipynb), "
            f"[training]({colab}/10_train_cuhk03.ipynb), or [all in Binder]({binder}).\n\n")


def output_text(output, pictures):
    "Markdown of one output; pictures, with alternative texts, are collected under file names."
    data = output.get("data", {})
    if "image/png" in data:
        name = f"index-{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode("".join(data["image/png"]))
        alt = output["metadata"]["image/png"]["alt"]
        return f"![{alt}](nbs/images/{name})"
    return "".join(data.get("text/markdown", []))


def readme(notebook):
    "(README text, pictures) of the index notebook."
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown": parts.append("".join(cell["source"]))
        else: parts += filter(None, (output_text(o, pictures) for o in cell["outputs"]))
    text = "\n\n".join(parts) + "\n"
    text = re.sub(r"\]\((\w+\.ipynb)\)", r"](nbs/\1)", text) # links from the top level
    text = text.replace("](../", "](").replace("](images/", "](nbs/images/")
    if PUBLIC: text = text.replace("git clone ADDRESS", f"git clone {PUBLIC}")
    text = text.replace("### I have a laptop\n", "### I have a laptop\n" + elsewhere(PUBLIC))
    return text, pictures


def main(check):
    text, pictures = readme(json.loads((ROOT/"nbs"/"index.ipynb").read_text()))
    files = {ROOT/"README.md": text.encode()}
    files |= {PICTURES/name: data for name, data in pictures.items()}
    for path, content in files.items():
        if check and (not path.exists() or path.read_bytes() != content):
            sys.exit(f"{path.relative_to(ROOT)} is not what nbs/index.ipynb gives; "
                     f"run: .venv/bin/python .ci/readme.py")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


if __name__ == "__main__": main("--check" in sys.argv)
