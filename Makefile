# make demo: install, animate a picture and train a static-camera motion LoRA on the embedded base: runs/demo/index.html.
#   make demo PHOTO=my.jpg ARROWS="[[120,200,180,200]]" MASK=mask.png takes a picture of your own.
# make test: install, lint, run all tests but the long ones.
# make test-long: run the tests marked long: whole commands, killed and resumed runs, several processes, full size.
# All make .venv on the first call and reuse it afterwards.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

TESTS := $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-long
demo: $(INSTALLED)
	$(VENV)/bin/python experiments/demo/make.py $(if $(PHOTO),--photo "$(PHOTO)") \
		$(if $(ARROWS),--arrows "$(ARROWS)") $(if $(MASK),--mask "$(MASK)")

test: $(INSTALLED)
	$(VENV)/bin/python -m ruff check .
	$(TESTS) -m "not long"

test-long: $(INSTALLED)
	$(TESTS) -m long

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --editable ".[test]"
	touch $@
