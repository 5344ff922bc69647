# Each command makes its own virtual environment and needs nothing but Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
# The tests start many processes, which are quicker where compiled modules are kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test quick test-hub exhaustive fuzz clean

demo: $(VENV)/demo.stamp
	$(VENV)/bin/spinevision demo

test: $(VENV)/test.stamp
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -n 2

quick: $(VENV)/test.stamp
	$(VENV)/bin/python -m pytest -n 2 -m "not slow"

exhaustive: $(VENV)/test.stamp
	$(VENV)/bin/python -m pytest -n 2 -m exhaustive

fuzz: $(VENV)/test.stamp
	SPINEVISION_DAMAGED_FOLDERS=10000 $(VENV)/bin/python -m pytest -n 2 tests/hub/test_hostile_folders.py

test-hub:
	$(PYTHON) tests/hub/client_versions.py

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --constraint constraints.txt --editable .
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --constraint constraints.txt --editable ".[test,export,demo]"
	touch $@

clean:
	rm -rf .venv build dist
