"Package metadata, read from settings.ini: the same file that nbdev reads."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here/"settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

names = ("study", "bench", "raw", "onnx", "log", "timm", "classify")
optional = (*names, "faiss", "site", "browser", "dev")
extras = {name: cfg[f"{name}_requirements"].split() for name in optional}
extras["dev"] += [word for name in names for word in extras[name]]

# Links of the README lead nowhere on a package index, unless they are whole addresses.
readme = (here/"README.md").read_text(encoding="utf-8")
public = cfg["git_url"].rstrip("/").removesuffix(".git")
if public:
    file = f"{public}/blob/{cfg['branch']}/"
    readme = re.sub(r"(!\[[^\]]*\])\((?!\w+:|#)", rf"\1({public}/raw/{cfg['branch']}/", readme)
    readme = re.sub(r"(?<!!)(\[[^\]!]*\])\((?!\w+:|#)", rf"\1({file}", readme)
places = dict(Source=public, Changes=f"{public}/blob/{cfg['branch']}/CHANGELOG.md",
              Issues=f"{public}/issues") if public else {}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    url=public or None,
    project_urls={"Paper": "https://arxiv.org/abs/2007.08779", **places},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Education",
        "Operating System :: OS Independent",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed"],
    author=cfg["author"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    package_data={cfg["lib_path"]: ["py.typed"]},
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(),
                  "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
