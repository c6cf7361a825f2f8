# make demo: install, train a static-camera motion LoRA on the embedded base, leave videos and pictures in runs/.
# make test: install, pass the tests. Both make .venv on the first call and reuse it afterwards.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test
demo: $(INSTALLED)
	$(VENV)/bin/python train.py experiment=motion_lora scale.height=64 scale.width=64 trainer.max_steps=150 trainer.val_check_interval=150

test: $(INSTALLED)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --editable ".[test]"
	touch $@
