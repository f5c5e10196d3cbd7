PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

# Train on the embedded base and the bundled pictures, draw before and after, and measure both.
demo: .venv/demo
	rm -rf demo
	$(BIN)/accelerate launch --num_cpu_threads_per_process=2 scripts/train_sdxl.py --gralora_rank 64 --output_dir demo
	$(BIN)/python scripts/sample_sdxl.py --adapter demo --compare --output demo/unseen.png --num_images 1 \
	    --prompt "sks robot at sunset|a drawing of sks robot|sks robot next to a red apple on a white background|sks robot on a purple background"
	$(BIN)/python scripts/evaluate.py --run demo

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

.venv/%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[$(if $(filter demo,$*),eval,test)]"
	touch $@

clean:
	rm -rf .venv build demo runs
