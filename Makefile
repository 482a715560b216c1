# Everything there is to type. `make` alone lists it.
PYTHON ?= python3
NB     ?= $(wildcard notebooks/*.ipynb)
PORT   ?= 8000
DEVICE ?= cpu

SITE   := .venv/.site
ENV    := .venv/.ready
VENDOR := _build/vendor/.ready
LAB    := _build/vendor/laboratory/files.js
PEERS  := _build/libraries/.ready
HOST   := $(PATH)
export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/node_modules/.bin:$(PATH)
# PyTorch's threads spin while they wait for each other, which on a busy machine costs ten times the time. Spin briefly.
export GOMP_SPINCOUNT := 3000
# glibc gives large blocks back to the system at once and asks for them again at the next step: let it keep them.
export MALLOC_MMAP_THRESHOLD_ := 1000000000
export MALLOC_TRIM_THRESHOLD_ := 1000000000

.DEFAULT_GOAL := help
.PHONY: help book serve lab execute test colab bench audit reading-time lint format lock new-chapter repository clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

book: $(VENDOR) $(LAB) ## build the site into _build/html; a warning is an error, and a failed build leaves no site
	@jupyter-book build . -W -n --keep-going --quiet || { rm -rf _build/html _build/.doctrees; exit 1; }
	@echo "The book: $(CURDIR)/_build/html/index.html (make serve shows it)"

serve: book ## show the site at http://localhost:8000 (PORT=... for another)
	python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

lab: $(ENV) ## open the chapters in JupyterLab
	jupyter lab --notebook-dir notebooks

execute: $(ENV) ## run every chapter again and store its outputs (NB=notebooks/... for one)
	python tools/execute.py $(NB)

# Progress bars are for people; what is stored and compared has none. And one thread each: as many processes as the
# machine has cores share it better than threads do, and a sum does not depend on how many there are.
test execute new-chapter colab: export TQDM_DISABLE := 1
test execute new-chapter colab: export OMP_NUM_THREADS := 1
PARALLEL := --numprocesses=logical --dist
# What nbval compares: outputs as text. Of a figure it compares that there is one.
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=600 --nbval-sanitize-with=tests/nbval.cfg
JSLINT := oxlint --deny-warnings book/assets tools && tsc --project jsconfig.json
# A test whose browser died or hung, and was killed, gets a second one; the report names it.
AGAIN := --reruns 1 --only-rerun "Target.* closed" -rfER
test: $(ENV) $(PEERS) node_modules/.dev $(LAB) ## check everything: style, helpers, every chapter's outputs, the built site in a browser
	ruff check . && ruff format --check . && $(JSLINT)
	pytest tests -m "not site" $(PARALLEL) loadfile
	pytest $(NBVAL) notebooks $(PARALLEL) loadfile
	$(MAKE) --no-print-directory book
	pytest tests -m site $(PARALLEL) load $(AGAIN)

colab: $(ENV) ## rehearse a start in Colab, a part of test (CHAPTERS="01_notation ..." for other chapters)
	pytest tests -m colab

bench: $(PEERS) ## time our attacks beside the libraries and rewrite book/comparison.md (DEVICE=cuda for its GPU table)
	PYTHONPATH=_build/libraries python benchmarks/compare.py --device $(DEVICE)
	[ $(DEVICE) != cpu ] || PYTHONPATH=_build/libraries python benchmarks/bounds.py

audit: book node_modules/.dev ## measure every page with Lighthouse, as a phone on a slow network sees it; fails over budget
	node tools/audit.mjs

reading-time: $(ENV) ## measure how long each chapter takes to read
	@python tools/reading_time.py $(NB)

lint: $(ENV) node_modules/.dev $(LAB) ## check the style of code, notebooks included, and the types of the laboratory's
	ruff check . && ruff format --check . && $(JSLINT)

format: $(ENV) ## repair the style of code, notebooks included
	ruff check --fix . && ruff format .

lock: $(ENV) ## pin what pyproject.toml and package.json ask for (UPGRADE=--upgrade for the newest)
	uv pip compile -q $(UPGRADE) --universal --python-version 3.11 --group dev pyproject.toml -o requirements.txt --custom-compile-command "make lock"
	uv pip compile -q $(UPGRADE) --universal --python-version 3.11 --group colab -o tests/colab.txt --custom-compile-command "make lock"
	npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved

new-chapter: $(ENV) ## begin a chapter from the template: make new-chapter NAME=06_linear_models
	python tools/new_chapter.py $(NAME)

repository: $(ENV) ## say where the book lives: make repository URL=https://github.com/you/your-fork
	python tools/repository.py $(URL)

clean: ## remove what was built (the environment .venv stays)
	rm -rf _build node_modules .pytest_cache .ruff_cache notebooks/.ruff_cache .hypothesis

# The environment, first as much of it as builds the site: a tenth of the whole, and no PyTorch.
GROUP := import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"][sys.argv[1]], sep="\n")
$(SITE): PATH := $(HOST)
$(SITE): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("The book needs Python 3.11 to 3.13; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	.venv/bin/python -c '$(GROUP)' site > .venv/site.txt
	.venv/bin/python -c '$(GROUP)' laboratory > .venv/laboratory.txt
	.venv/bin/pip install --quiet --constraint requirements.txt --requirement .venv/site.txt
	.venv/bin/pip install --quiet --constraint requirements.txt --no-deps --requirement .venv/laboratory.txt
	@touch $@

# Then all that is pinned, and helpers itself.
$(ENV): $(SITE)
	.venv/bin/pip install --quiet --requirement requirements.txt
	.venv/bin/pip install --quiet --no-deps --editable .
	@touch $@

# The libraries that our attacks are compared with, beside the environment rather than in it: their own pins clash.
$(PEERS): benchmarks/requirements.txt $(ENV)
	rm -rf _build/libraries
	pip install --quiet --no-deps --target _build/libraries --requirement benchmarks/requirements.txt
	@touch $@

# What pages borrow from npm. node and npm come from the environment, too.
$(VENDOR): node_modules/.ready tools/vendor.mjs
	node tools/vendor.mjs
	@touch $@
# What the laboratory downloads. No PyTorch here either: the weights are read from their package as they are.
$(LAB): tools/laboratory.py $(VENDOR)
	python tools/laboratory.py
NPM := npm ci --ignore-scripts --no-audit --no-fund --loglevel error
node_modules/.ready: package-lock.json $(SITE)
	$(NPM) --omit=dev
	@touch $@
# With what checks scripts, and Lighthouse: twice the size. npm starts from nothing, so what the book needs is there anew.
node_modules/.dev: package-lock.json node_modules/.ready
	$(NPM)
	@touch node_modules/.ready $@
