.PHONY: demo test test-slow site install clean
PYTHON ?= python3
BIN := .venv/bin

# Everything happens in .venv; the stamp makes a second call free.
.venv/.installed: settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
# the name that nbdev_clean leaves: with another JupyterLab opens notebooks as changed
	$(BIN)/python -m ipykernel install --prefix .venv --name python3 --display-name python3
	touch $@

install: .venv/.installed

# The embedded pedestrians, the five rows of Table 3, one table and the figures.
# glibc gives large blocks back at every free, and the next step pays for fresh pages:
# keeping them saved a sixth of a MobileNetV2 step (results/benchmarks/levers-mobilenet_v2-cpu.json).
demo: export MALLOC_MMAP_MAX_ = 0
demo: export MALLOC_TRIM_THRESHOLD_ = 8000000000
demo: export MALLOC_TOP_PAD_ = 67108864
demo: install
	$(BIN)/gcutmix_demo --out runs/demo

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=12 -rs tests

# What CI runs: sync of notebooks, package and README; each notebook; pytest; the wheel.
test: install
	$(PYTEST) -m "not slow"

# The rest: what takes long and seldom breaks. Weekly in CI.
test-slow: install
	$(PYTEST) -m slow

# The notebooks as they are saved, and the reference, as pages in _site.
site: .venv/.site
	$(BIN)/python .ci/site/build.py

.venv/.site: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(shell sed -n 's/^site_requirements = //p' settings.ini)
	touch $@

clean:
	rm -rf .venv runs build dist _site *.egg-info
