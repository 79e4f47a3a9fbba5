# What a developer types. Nothing is assumed but python3 and make: the first target that needs them makes a virtual
# environment in .venv and installs attribkit with its tools there, again only when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
# The theme's makers tell of their next program at every build.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs
STAMP := $(VENV)/.installed
PIP_FLAGS ?= --quiet --disable-pip-version-check --no-input
DEMO_OUT ?= attribkit-report
PYTEST_FLAGS ?=
# What `make zoo` takes, such as ZOO="resnet18 convnext_atto", or ZOO=page to write the page alone; empty: everything.
ZOO ?=
# What `make shelf-check` takes, such as SHELF=--together, all of them in one environment, or SHELF="cam lrp".
SHELF ?=
# How long `make fuzz` takes for each reader.
FUZZ_SECONDS ?= 600

.DELETE_ON_ERROR:
.PHONY: help venv demo app test lint format types check images figures fields weights docs docs-serve commands tutorials bench zoo shelf shelf-check mutants conformance fuzz kills soak clean distclean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r target text; do \
		printf '  make %-11s %s\n' "$$target" "$$text"; done

venv: $(STAMP)  ## make .venv and install attribkit with its tools

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "attribkit needs Python 3.10 or later, $(PYTHON) is " + sys.version)'
	@test -x $(VENV)/bin/pip || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing attribkit and its tools into $(VENV); the first time this fetches torch and takes minutes"
	@$(RUN) pip install $(PIP_FLAGS) --editable '.[dev]'
	@touch $@
	@echo "Installed"

demo: $(STAMP)  ## explain the sample photograph, and say where the page is
	@$(VENV)/bin/attribkit demo --out $(DEMO_OUT)
	@echo "The page: $$(cd '$(DEMO_OUT)' && pwd)/report.html"

app: $(STAMP)  ## look inside a network in the browser, until Ctrl+C
	$(VENV)/bin/attribkit app --open

test: $(STAMP)  ## run the tests
	$(RUN) pytest $(PYTEST_FLAGS)

lint: $(STAMP)  ## check style and format
	$(RUN) ruff check .
	$(RUN) ruff format --check .

format: $(STAMP)  ## put the code in format
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

types: $(STAMP)  ## check the types
	$(RUN) mypy

check: lint types docs test  ## all of lint, types, docs and test

images: $(STAMP)  ## make the pictures of the README, of docs/engine.md, docs/methods.md and docs/app.md; needs `make shelf` and chromium
	$(VENV)/bin/python docs/make_images.py
	$(VENV)/bin/python docs/make_engine_images.py
	$(VENV)/bin/python docs/make_methods_images.py
	$(VENV)/bin/python docs/make_app_images.py

figures: $(STAMP)  ## make the pictures and the numbers of docs/paper
	$(VENV)/bin/python docs/paper/make_figures.py

fields: $(STAMP)  ## compare every receptive field of four networks with the gradient's support
	$(VENV)/bin/python tests/features/every_field.py

weights: $(STAMP)  ## train zfnet-fashion as it is shipped, in about 45 minutes, and put it into the package
	mkdir -p out/weights
	cd out/weights && ../../$(VENV)/bin/attribkit train --data fashion-mnist --out fashion-run2 --width 0.25 \
		--model-option drop_rate=0.3 --size 112 --resize 128 --init scaled --epochs 18 --patience 1 --min-delta 0.005 \
		--anneal 0.25 --snapshots 0,1,2,5,10,18 --threads 1 --workers 1 --seed 0
	cd out/weights && ../../$(VENV)/bin/attribkit train --data fashion-mnist --out fashion-run \
		--weights fashion-run2/weights.safetensors --width 0.25 --model-option drop_rate=0.1 --size 112 --resize 128 \
		--lr 0.004 --epochs 14 --patience 1 --min-delta 0.0005 --anneal 0.3 --threads 2 --workers 1 --seed 1
	$(VENV)/bin/python tests/ship_weights.py out/weights/fashion-run2 out/weights/fashion-run

docs: $(STAMP)  ## build the documentation in out/site, and check its links, its commands and that it needs no network
	$(VENV)/bin/python docs/check_links.py README.md CHANGELOG.md docs/*.md docs/*/*.md plugins/*/README.md
	$(VENV)/bin/python docs/make_commands.py --check
	$(MKDOCS) build --strict --config-file .mkdocs.yml
	$(VENV)/bin/python docs/check_site.py out/site

docs-serve: $(STAMP)  ## show the documentation on http://127.0.0.1:8000, and again after each change
	$(MKDOCS) serve --config-file .mkdocs.yml

commands: $(STAMP)  ## write docs/commands.md, the help of every command
	$(VENV)/bin/python docs/make_commands.py

tutorials: $(STAMP)  ## run the tutorial notebooks again
	$(VENV)/bin/python docs/make_tutorials.py

bench: $(STAMP)  ## run the benchmarks, in about two hours, and write docs/benchmarks.md
	$(RUN) pytest -s -o python_files='bench_*.py' tests/benchmarks
	for threads in 1 2; do \
		$(VENV)/bin/python tests/benchmarks/bench_occlusion.py --threads $$threads && \
		$(VENV)/bin/python tests/benchmarks/bench_occlusion.py --threads $$threads --window 16 --stride 8 --rounds 3 \
			torchvision/vgg16 zfnet torchvision/alexnet || exit 1; done
	$(VENV)/bin/python tests/benchmarks/bench_occlusion.py --families --window 32 --stride 32
	$(VENV)/bin/python tests/benchmarks/bench_runs.py
	$(VENV)/bin/python docs/make_benchmarks.py

zoo: $(STAMP)  ## run every model of timm's and write docs/zoo.md, in an hour or two; ZOO="name name" takes these
	PYTHONPATH=tests $(RUN) zoo $(ZOO)

shelf: $(STAMP)  ## install every distribution under plugins/ into .venv, with what their tests need
	$(RUN) pip install $(PIP_FLAGS) $(foreach folder,$(wildcard plugins/attribkit-*),--editable './$(folder)[test]')
	$(VENV)/bin/attribkit methods

shelf-check: $(STAMP)  ## install, test, check and remove every distribution under plugins/, each alone
	plugins/check_shelf.sh $(SHELF)

mutants: $(STAMP)  ## run the whole conformance kit on every faulty method and engine
	MUTANTS_WHOLE_KIT=1 $(RUN) pytest -q -s tests/testing/test_mutants.py

conformance: $(STAMP)  ## write docs/checks.md, and docs/conformance-of-others.md by running the kit on Captum and Zennit
	$(VENV)/bin/python tests/testing/page_of_checks.py
	$(VENV)/bin/python tests/testing/report_others.py

fuzz: $(STAMP)  ## fuzz every reader of files, $(FUZZ_SECONDS) seconds each; FUZZ_SECONDS=60 is shorter
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

kills: $(STAMP)  ## kill runs fifty times at random moments, and compare what they finish; a quarter of an hour
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/runs/kill_many.py --kills 50

soak: $(STAMP)  ## run 20,000 attributions in one process, and see what they leave behind
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/soak.py

clean:  ## remove what the other targets made, except .venv
	rm -rf build dist out attribkit-report *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf $(VENV)
