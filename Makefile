# Two commands need nothing but Debian: make demo, make test. Each sets up what it needs and leaves nothing running.
# dockerd lives in /usr/sbin, which not every root has on the path.
export PATH := $(PATH):/usr/sbin:/sbin
PYTHON := .venv/bin/python
COLLECTION := ansible_collections/homelab/healer

.PHONY: demo loop test test-all matrix bench lint format clean ready

# LAB=lxc: a story in real Linux containers.
demo: ready
	@$(PYTHON) -m tests.lab.demo $(LAB)

# What measures has the machine to itself; the rest runs two at a time.
test: ready
	$(PYTHON) -m pytest -m alone
	$(PYTHON) -m pytest -m "not alone" -n 2 --dist loadgroup

test-all: ready
	$(PYTHON) -m pytest --all -m alone
	$(PYTHON) -m pytest --all -m "not alone" -n 2 --dist loadgroup

# Takes forty minutes to an hour. Its last line is "N of N closed".
matrix: ready
	@$(PYTHON) -m tests.lab.matrix

# Its last line is "N of N closed, harm to 0".
loop: ready
	@$(PYTHON) -m tests.lab.loop

bench: ready
	$(PYTHON) -m pytest -s tests/bench

lint: ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy .
	.venv/bin/ansible-lint --offline --profile production
	cd $(COLLECTION) && ../../../.venv/bin/antsibull-changelog lint
	tests/lab/sanity

format: ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv .cache .ansible .mypy_cache .ruff_cache .pytest_cache .hypothesis

ready:
	@tests/lab/prepare
