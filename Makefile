# Everything sets itself up: `make demo` and `make test` need Python 3.10 or newer and make, no more.
# Another Python: make clean, then make test PYTHON=python3.12

PYTHON ?= python3
DATA ?=
OUT ?= medssl-demo
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test check docs golden size bench clean
help:
	@echo "make demo     recommend, generate and run a script on real images, on the CPU; DATA=folder for your own"
	@echo "make test     all tests"
	@echo "make check    lint, format, types and rules: with the tests, what a change has to pass"
	@echo "make docs     write the pages on the rules, and the output that other pages show, anew"
	@echo "make golden   write the expected scripts in tests/golden anew"
	@echo "make size     lengths of modules and emitted scripts against their budgets"
	@echo "make bench    what one answer costs"
	@echo "make clean    remove the virtual environment and what tools left"

demo: .venv/demo
	$(BIN)/medssl demo --force --out "$(OUT)" $(if $(DATA),--data "$(DATA)")

# One process a core and one thread each: the tests' networks are tiny, and threads waiting for each
# other triple the time. Memory in large pieces, as in scripts.
test: .venv/test
	OMP_NUM_THREADS=1 THP_MEM_ALLOC_ENABLE=1 $(BIN)/python -m pytest -n auto --dist worksteal

check: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/medssl rules check
	$(BIN)/python -m advisor.audit.docs --check

docs: .venv/test
	$(BIN)/python -m advisor.audit.docs
	$(BIN)/python -m pytest -q --update-golden tests/test_docs.py

golden: .venv/test
	$(BIN)/python -m pytest -q --update-golden tests/test_templates.py

# 300 lines for a module; of a script 700 for what is its own and stands first (settings, method, network,
# views, task), and 1,800 with what all share (data, loop, protocol). The longest last.
size: .venv/test
	@{ wc -l advisor/*.py advisor/*/*.py; \
	  for method in scratch simclr mae dira; do \
	    $(BIN)/medssl generate --modality xray --task classification --method $$method -o - 2>/dev/null | \
	      awk -v name=$$method '/^# %% Data: a CSV/ { print NR - 1, "own:" name } END { print NR, "script:" name }'; \
	  done; } | sort -n | awk '$$2 != "total" { \
	  budget = $$2 ~ /script/ ? 1800 : $$2 ~ /own/ ? 700 : 300; over = $$1 > budget; bad += over; \
	  printf "%5d of %d  %s%s\n", $$1, budget, $$2, over ? "   OVER" : "" } END { exit bad > 0 }'

bench: .venv/test
	$(BIN)/python benchmarks/answer.py

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps, so that set-up happens once, and again when what it installs has changed.
.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else \
	  "Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/demo: .venv/made pyproject.toml constraints.txt
	$(PIP) -e '.[train,demo]'
	@touch $@

# tests/test_oracles.py compares losses with lightly's, which need torch alone; what lightly asks for
# beside it is left out, since pip's torchvision does not run with a CPU build of torch.
.venv/test: .venv/made pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps lightly
	@touch $@ .venv/demo
