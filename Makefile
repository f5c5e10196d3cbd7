PYTHON ?= python3
BIN := .venv/bin

EXTRA_test := [test]

.PHONY: demo ui test chromium clean

# Train on the embedded base model and the bundled images, generate images before and after, and score both.
demo: .venv/demo
	$(BIN)/gralora demo

# Train, watch, sample, compare and export in a browser, at http://127.0.0.1:7860; PORT=8000 for another.
ui: .venv/ui
	$(BIN)/gralora ui --port $(or $(PORT),7860)

test: .venv/test chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.venv/%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing PyTorch, diffusers and others into .venv: several GB, several minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".$(EXTRA_$*)"
	touch $@

# Install Chromium for the tests of the page, and nginx for the test of the page behind a proxy, if they are missing and apt
# has them. Without Chromium those tests fail and say so; without nginx its test is skipped.
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null || (apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null) || \
	    echo "Chromium could not be installed: install it yourself, since the tests of the page need it"
	@command -v nginx /usr/sbin/nginx >/dev/null || (apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light >/dev/null) || \
	    echo "nginx could not be installed: the test of the page behind it is skipped"

clean:
	rm -rf .venv build demo runs
