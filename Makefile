# The commands a newcomer needs; each sets up what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-membership demo-actors demo-handlers cluster test check attacks wheel check-compiled sim lint rewrite-scenarios bench fuzz format clean

# The virtual environment, made anew when the dependencies change.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "drakkar needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": name a newer one with `make PYTHON=python3.12 ...`")'
	$(PYTHON) -c 'import ensurepip' || (echo "$(PYTHON) cannot make virtual environments: on Debian, install python3-venv"; exit 1)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,bench]'
	touch $@

# A type checker wants to see the folders under the names they are installed by.
.types: Makefile
	mkdir -p .types/drakkar
	for room in handlers transport actors; do ln -sfn ../../$$room .types/drakkar/$$room; done
	touch .types

demo: $(VENV)/ready
	$(BIN)/python -m examples.kv_demo

demo-membership: $(VENV)/ready
	$(BIN)/python -m examples.membership_demo

demo-actors: $(VENV)/ready
	$(BIN)/python -m examples.actors_demo

# As root it makes network namespaces, and elsewhere relays take their place.
demo-handlers: $(VENV)/ready
	$(BIN)/python -m examples.handlers_demo

cluster: $(VENV)/ready
	$(BIN)/python -m examples.kv_demo --keep-running

lint: $(VENV)/ready .types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p drakkar.handlers -p drakkar.transport -p drakkar.actors
	$(BIN)/lint-imports --no-cache

# What takes a few minutes on two cores. Tests run in JOBS processes; those of one xdist_group stay together. Half of their time
# they wait for timers and disks, so there are more processes than cores.
JOBS ?= 3
test: lint
	$(BIN)/python -m pytest -m 'not slow' -n $(JOBS) --dist loadgroup

# What takes longer: more schedules, all mutants and all crashes, a process on each core; then, one at a time, since some of them measure,
# long chaos, the demos and benchmarks.
COMPUTING := tests/simulation tests/handlers tests/actors/log
check: $(VENV)/ready
	$(BIN)/python -m pytest -m slow -n auto --dist loadgroup $(COMPUTING)
	$(BIN)/python -m pytest -m slow $(addprefix --ignore ,tests/attacks $(COMPUTING))
	$(MAKE) attacks
	$(MAKE) check-compiled

# All attacks on real hosts, one at a time, and the table of what each cost, as in docs/security.md. Some six minutes.
attacks: $(VENV)/ready
	$(BIN)/python -m tests.attacks $(ATTACKS)

# A wheel whose core is compiled, in build/wheel; and a virtual environment that has it, beside which `make bench` measures.
# setup.py says what is compiled; it takes about a minute, and a C compiler.
COMPILED := build/compiled
wheel: $(COMPILED)/ready
$(COMPILED)/ready: $(VENV)/ready setup.py tools/backend.py $(shell find handlers transport actors -name '*.py')
	rm -rf $(COMPILED) build/wheel
	DRAKKAR_COMPILE=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv $(COMPILED)
	$(COMPILED)/bin/python -m pip install --quiet --disable-pip-version-check "$$(echo build/wheel/*.whl)[test]"
	touch $@

# The tests of the core and schedules of the simulator, with the modules that are compiled.
check-compiled: $(COMPILED)/ready
	DRAKKAR_COMPILE=1 $(COMPILED)/bin/python -m pytest -n $(JOBS) --dist loadgroup tests/handlers tests/scenarios tests/transport/test_message_frames.py
	$(COMPILED)/bin/python -m tests.simulation 500

# make sim SEEDS=100000 for so many seeds that were never run before, FIRST=7000 to say which, SEED=7 to replay one.
SEEDS ?= 1000
sim: $(VENV)/ready
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),$(SEEDS)) $(if $(HOSTS),--hosts $(HOSTS)) $(if $(FIRST),--first $(FIRST)) --coverage

# The output in the files of tests/scenarios, as it is now. Read the diff before you commit it.
rewrite-scenarios: $(VENV)/ready
	$(BIN)/python -m tests.scenarios
	git diff --stat -- tests/scenarios

# Some twenty minutes. xoscar is measured where it installs. make bench BENCH="--systems drakkar,dragonboat --rows 1,64 --rounds 2" for half a minute.
bench: $(VENV)/ready
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check xoscar
	$(BIN)/python -m tests.benchmarks.commits --json bench.json --plot bench.png $(BENCH)

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The decoders and whole connections, led by coverage, each for so many SECONDS. TARGETS="messages run" for some of them.
# Only where atheris installs: that is on Linux, for some versions of Python.
SECONDS ?= 60
fuzz: $(VENV)/ready
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python -m tests.attacks.fuzz_run --seconds $(SECONDS) $(TARGETS)

clean:
	rm -rf $(VENV) .types build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bench.json bench.png
