# make demo        the whole path on the demo corpus: corpus, shards, training, export, generation, report
# make demo-long   the same with more training; can be stopped and started again
# make demo-edit   teaches the model of make demo to edit pictures: editing corpus, shards, training, export, report
# make test        all tests
# make test-transformers5  the tests of exported folders with transformers 5, in an environment of its own
# make test-eval  lm-eval-harness, lmms-eval and VLMEvalKit on exported folders, in an environment that make setup-eval makes
# make setup-clients  what the tests of the server need besides Python: the npm clients, and version 1 of the official client
# make test-clients  the server with every client of docs/serving.md, each in an environment of its own under .clients
# make study-quick a small run of the comparison of layer kinds, every part of it; after make demo
# make study       the comparison; can be stopped and started again; after make demo
# make setup       the virtual environment that the others use; made once

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/installed.stamp
T5 := .venv-t5
T5_TESTS := $(wildcard tests/model/test_hf_*.py)
EVAL := .venv-eval

.PHONY: setup setup-eval test test-eval test-transformers5 demo demo-long demo-edit study-quick setup-clients test-clients study
setup: $(STAMP)

$(STAMP): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("error: Python %d.%d found, 3.11 or 3.12 needed: make setup PYTHON=/path/to/python3.11" % v)'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	touch $(STAMP)

# One worker more than there are cores (tests/spread.py): the tests of Slurm mostly wait. The last line is pytest's summary.
SPREAD := -n auto

test: setup
	$(RUN) -m pytest -q $(SPREAD) --durations=20 tests

# --noconftest: the suite's conftest needs megatron-core
test-transformers5: $(T5)/installed.stamp
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(T5)/bin/python -m pytest -q --noconftest $(T5_TESTS)

$(T5)/installed.stamp: requirements-transformers5.txt constraints-transformers5.txt
	test -x $(T5)/bin/python || $(PYTHON) -m venv $(T5)
	$(T5)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(T5)/bin/pip install --quiet --disable-pip-version-check -r requirements-transformers5.txt -c constraints-transformers5.txt
	touch $(T5)/installed.stamp

test-eval: setup setup-eval
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q tests/tools/evaluation/*_tests.py

setup-eval: $(EVAL)/installed.stamp

# PyPI's torchvision wants a CUDA build of torch, and transformers imports it wherever it is: so it lies where only
# tools/run_vlmevalkit.py looks for it
$(EVAL)/installed.stamp: requirements-eval.txt requirements-eval-bare.txt constraints-eval.txt
	test -x $(EVAL)/bin/python || $(PYTHON) -m venv $(EVAL)
	$(EVAL)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(EVAL)/bin/pip install --quiet --disable-pip-version-check -r requirements-eval.txt -c constraints-eval.txt
	$(EVAL)/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-eval-bare.txt
	$(EVAL)/bin/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(EVAL)/vlmevalkit torchvision==0.28.0
	touch $(EVAL)/installed.stamp

setup-clients: tests/clients/npm/node_modules/installed.stamp .clients/openai1/installed

tests/clients/npm/node_modules/installed.stamp: tests/clients/npm/package-lock.json
	cd tests/clients/npm && npm ci --no-audit --no-fund --loglevel=error
	touch $@

.clients/openai1/installed: tests/clients/requirements/openai1.txt
	$(PYTHON) -m venv .clients/openai1
	.clients/openai1/bin/pip install --quiet --disable-pip-version-check -r $<
	cp $< $@

test-clients: setup setup-clients
	OMP_NUM_THREADS=1 $(RUN) -m tests.clients.run --folder .clients

demo: setup
	$(RUN) tools/demo.py --preset demo

demo-long: setup
	$(RUN) tools/demo.py --preset demo-long

demo-edit: setup
	$(RUN) tools/demo.py --preset demo-edit

study-quick: setup
	$(RUN) tools/run_study.py --preset quick

study: setup
	$(RUN) tools/run_study.py --preset full
