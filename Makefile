# Two commands on a fresh machine: `make demo` and `make test`. `make docs` builds the site, `make fuzz` damages 10,000
# files of each format.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-all lint types unit docs fuzz format clean

demo: $(VENV)/.installed
	$(BIN)/psaq demo

test: lint types unit

# All of it, about a third longer: also what repeats a check on one more model, width or target.
test-all: CASES := -m ''
test-all: lint types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# A test file at a time on each core, with a thread for each: what is tested is too small to share out.
unit: $(VENV)/.installed-dev .triton36/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(CASES)

# The pages of docs/ and the API reference, in site/.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

fuzz: $(VENV)/.installed-dev
	PYTHONPATH=.:kernels:plots:tests $(BIN)/python tests/fuzz/campaign.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torchvision is named beside torch so that pip picks two builds that belong together.
$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet torch torchvision timm
	$(BIN)/python -m pip install --quiet --editable ".[dense]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev,dense,docs,onnx,openvino,huggingface,transformers]"
	touch $@

# What the extra `docs` names, alone: the reference is read from the sources, without torch.
$(VENV)/.installed-docs: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet "mkdocs-material>=9.6" "mkdocstrings[python]>=0.29"
	touch $@

# The oldest Triton that the kernels must compile under, beside the environment's own.
.triton36/.installed: $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --target .triton36 "triton==3.6.*"
	touch $@

clean:
	rm -rf $(VENV) .triton36 build *.egg-info runs site
