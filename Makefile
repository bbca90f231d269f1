# make demo        the whole path on the demo corpus: corpus, shards, training, export, generation, report
# make demo-long   the same with more training; can be stopped and started again
# make demo-edit   teaches the model of make demo to edit pictures: editing corpus, shards, training, export, report
# make test        all tests
# make lint        ruff's rules and format, and mypy's types (pyproject.toml), as .ci/run and the hook of .pre-commit-config.yaml check them
# make test-fast   the tests that start no processes, cluster or browser and take no more than seconds: most of them, in all packages
# make test-transformers5  the tests of exported folders with transformers 5, in an environment of its own
# make test-megatron  engines, parity, checkpoints and conversion with the other megatron-core, whose wheel is unpacked beside
# make test-trl    trl's trainers on exported folders, with trl in a folder of its own; continuous integration runs it, too
# make test-transformers-suite  transformers' own common suites on the classes of exports, with 4.57 and 5, and their counts
# make test-export-by-hand  pipelines, Trainer, PEFT, offload, compile and the like on the export of make demo (or MODEL=FOLDER),
#                  with transformers 4.57 and 5 in environments that know nothing of this repository; prints a table
# make test-eval  lm-eval-harness, lmms-eval and VLMEvalKit on exported folders, in an environment that make setup-eval makes
# make setup-clients  what the tests of the server need besides Python: the npm clients, and version 1 of the official client
# make test-clients  the server with every client of docs/serving.md, each in an environment of its own under .clients
# make test-tools  quantizers, runtimes, trainers and the like on the export of make demo (or MODEL=FOLDER), each in an environment of
#                  its own that is removed again (ONLY=WORD for some); fails where docs/other-tools.md says something else
# make count-pictures PICTURES="DIR ..."  lays real pictures out in every form that is read, and counts that none is lost
# make fuzz-readers  10,000 mutated inputs of all readers, by hand; make test runs some hundreds
# make study-quick a small run of the comparison of layer kinds, every part of it; after make demo
# make study       the comparison; can be stopped and started again; after make demo
# make gpu-check   exactness, speed and memory on one GPU in at most eight minutes: work/gpu-check has a table and JSON
# make gpu-check-wheels  what a GPU machine without a network needs for that, in work/gpu-check-wheels
# make setup       the virtual environment that the others use; made once

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/installed.stamp
T5 := .venv-t5
T5_TESTS := $(wildcard tests/model/test_hf_*.py)
EVAL := .venv-eval
MEGATRON := .megatron-0.19.2
MEGATRON_TESTS := tests/megatron_versions_tests.py tests/pretrain/test_engine.py tests/pretrain/test_sharded_files.py \
	tests/pretrain/test_weight_gradients.py tests/model/test_uni_x.py tests/model/test_layer_kinds.py tests/tools/test_convert_from_hf.py \
	tests/tools/test_dry_run.py

.PHONY: setup setup-eval lint test test-fast test-eval test-megatron test-transformers5 test-trl test-transformers-suite test-export-by-hand gpu-check gpu-check-wheels demo demo-long demo-edit study-quick \
	setup-clients test-clients test-tools study count-pictures fuzz-readers
setup: $(STAMP)

# mosaicml-streaming brings torchvision, which nothing here uses. transformers imports it wherever it is installed, and
# PyPI's is linked to CUDA: with a CPU build of torch no model of transformers would open, so it is taken out again.
$(STAMP): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("error: Python %d.%d found, 3.11 or 3.12 needed: make setup PYTHON=/path/to/python3.11" % v)'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(VENV)/bin/pip uninstall --quiet --yes torchvision
	touch $(STAMP)

# One worker more than there are cores (tests/spread.py): the tests of Slurm mostly wait. The last line is pytest's summary.
SPREAD := -n auto

test: setup
	$(RUN) -m pytest -q $(SPREAD) --durations=20 tests

FAST := not slurm and not processes and not browser and not commands and not slow

test-fast: setup
	$(RUN) -m pytest -q -n $(shell nproc) -m '$(FAST)' tests

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# On Python 3.12 `make setup` installs megatron-core 0.19.2, and `make test` runs with it. On 3.11 its wheel, of which the Python
# files run there too, stands before 0.16.1 on the path.
test-megatron: setup $(MEGATRON)/unpacked.stamp
	@if $(RUN) -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then echo 'make test has run with megatron-core 0.19.2'; \
	else PYTHONPATH=$(CURDIR)/$(MEGATRON) $(RUN) -m pytest -q $(SPREAD) $(MEGATRON_TESTS); fi

$(MEGATRON)/unpacked.stamp: Makefile
	rm -rf $(MEGATRON)
	$(VENV)/bin/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
		--dest $(MEGATRON) megatron-core==0.19.2
	$(RUN) -m zipfile -e $(MEGATRON)/*.whl $(MEGATRON)
	touch $(MEGATRON)/unpacked.stamp

# --noconftest: the suite's conftest needs megatron-core
test-transformers5: $(T5)/installed.stamp
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(T5)/bin/python -m pytest -q --noconftest $(T5_TESTS)

$(T5)/installed.stamp: requirements-transformers5.txt constraints-transformers5.txt
	test -x $(T5)/bin/python || $(PYTHON) -m venv $(T5)
	$(T5)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(T5)/bin/pip install --quiet --disable-pip-version-check -r requirements-transformers5.txt -c constraints-transformers5.txt
	touch $(T5)/installed.stamp

TRL := .trl

test-trl: setup $(TRL)/installed.stamp
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(TRL) $(RUN) -m pytest -q tests/other_tools/trl_tests.py

$(TRL)/installed.stamp: requirements-trl.txt
	rm -rf $(TRL)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --target $(TRL) -r requirements-trl.txt
	touch $@

# downloads the source of both versions of transformers from PyPI, once; both run, whatever the first one says
test-transformers-suite: setup $(T5)/installed.stamp
	@failed=0; for python in $(RUN) $(T5)/bin/python; do $$python tests/transformers_suite/run.py || failed=1; done; exit $$failed

MODEL ?= work/demo/model
HAND := .hand/4.57.6 .hand/5.24.0

test-export-by-hand: setup $(HAND:=/installed.stamp)
	$(RUN) tests/export_by_hand.py --model $(MODEL) $(foreach folder,$(HAND),--python $(folder)/bin/python)

.hand/%/installed.stamp: requirements-export-by-hand.txt
	test -x .hand/$*/bin/python || $(PYTHON) -m venv .hand/$*
	.hand/$*/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.hand/$*/bin/pip install --quiet --disable-pip-version-check transformers==$* -r requirements-export-by-hand.txt
	touch $@

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

test-tools: setup
	$(RUN) -m tests.other_tools.run --model $(MODEL) $(if $(ONLY),--only "$(ONLY)")

# With .venv where it is there; else with a Python that has torch, and the wheels on PYTHONPATH.
gpu-check:
	$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) tools/gpu_check.py --output work/gpu-check $(if $(AGAINST),--against $(AGAINST))

gpu-check-wheels:
	rm -rf work/gpu-check-wheels
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
		--dest work/gpu-check-wheels -r requirements-gpu-check.txt
	du -sh work/gpu-check-wheels

count-pictures: setup
	$(RUN) tests/tokenization/count_pictures.py --pictures $(PICTURES)

fuzz-readers: setup
	$(RUN) tests/tokenization/fuzz_readers.py --inputs 10000

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
