# Two commands are all that a new machine needs: `make demo` and `make test` (python3 >= 3.11 with venv, make).
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
WORKERS ?= auto
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test check format bench bench-images install clean

demo: $(INSTALLED)  ## align the built-in world's model and open a report
	HF_HUB_OFFLINE=1 $(BIN)/prefopt demo --output demo

test: $(INSTALLED)  ## the whole test suite, offline, in parallel
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

check: $(INSTALLED)  ## format, lint, types
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

bench: $(INSTALLED)  ## TRL and prefopt one after the other, in fresh processes
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

bench-images: $(INSTALLED)  ## diffusers' Diffusion-DPO example and prefopt one after the other, in fresh processes
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.images

install: $(INSTALLED)

# torch first and pinned: as a dependency of something else pip would take the newest build with gigabytes of CUDA
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,bench]'
	touch $@

clean:
	rm -rf .venv build dist demo
