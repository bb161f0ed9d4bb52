# Every target works as the first command ever run in a bare clone: python3 (3.11 or newer) and make suffice.

.DEFAULT_GOAL := help
.PHONY: help test test-long simulate trace check format protos schema lock clean bench demo loadtest \
    passkey powercut crash crowd storm faults wire outages fleet races spray scenarios attacks

help:  ## List the targets
	@sed -n 's/^\([a-z.-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.venv/.built: requirements.lock pyproject.toml
	@scripts/build-venv

.venv: .venv/.built  ## Build the environment from the lock file

test: check  ## Run every check and every test
	.venv/bin/python -m pytest -n 2

test-long: .venv/.built  ## Run what takes long: thousands of random lives, minutes each
	.venv/bin/python -m pytest -m long -o faulthandler_timeout=0

scenarios: .venv/.built  ## Try a ruleset of your own: make scenarios RULESET=my-rules.yaml SCENARIOS=FOLDER
	RULESET=$(RULESET) SCENARIOS=$(SCENARIOS) .venv/bin/python -m pytest -q tests/scenarios

SEEDS ?= 1000
simulate: .venv/.built  ## Run the simulator: make simulate SEEDS=1000 START=0 STORE=memory|sqlite|postgresql|fleet
	.venv/bin/python -m tests.simulation --seeds $(SEEDS) --start $(or $(START),0) $(if $(STORE),--store $(STORE))

trace: .venv/.built  ## Run one trace on every store and compare: make trace COMMANDS=100000 SEED=1
	.venv/bin/python -m tests.traces --commands $(or $(COMMANDS),100000) --seed $(or $(SEED),1)

ACCEPTANCE := .venv/bin/python -m pytest -q

powercut: .venv/.built  ## Cut the power at random instants of a recorded server: make powercut IMAGES=200 CALLS=3000
	IMAGES=$(or $(IMAGES),200) CALLS=$(or $(CALLS),3000) $(ACCEPTANCE) tests/acceptance/test_power_cut.py

crash: .venv/.built  ## Kill a loaded server again and again, and while it starts: make crash KILLS=100 STARTS=50
	KEYS=$(or $(KEYS),20) KILLS=$(or $(KILLS),100) STARTS=$(or $(STARTS),50) $(ACCEPTANCE) \
	    tests/acceptance/test_kill.py tests/acceptance/test_start_and_stop.py tests/acceptance/test_same_key.py \
	    tests/acceptance/test_messages.py

crowd: .venv/.built  ## Put 64 callers on one line, with kills in between: make crowd SECONDS=60
	CROWD_SECONDS=$(or $(SECONDS),60) $(ACCEPTANCE) tests/acceptance/test_one_line.py

storm: .venv/.built  ## Have 64 clients cancel three calls in ten: make storm CALLS=50000
	CALLS=$(or $(CALLS),50000) $(ACCEPTANCE) tests/acceptance/test_cancel_storm.py

faults: .venv/.built  ## Let the disk fail under a loaded server: make faults FAULTS=20
	FAULTS=$(or $(FAULTS),20) $(ACCEPTANCE) tests/acceptance/test_disk_faults.py

wire: .venv/.built  ## Cut connections to PostgreSQL, and let transactions lose races: make wire FAULTS=10000
	INJECTED=$(or $(FAULTS),10000) $(ACCEPTANCE) -o faulthandler_timeout=0 tests/acceptance/test_injected_faults.py

outages: .venv/.built  ## Stop PostgreSQL at once, again and again, under a loaded server: make outages STOPS=20
	STOPS=$(or $(STOPS),20) $(ACCEPTANCE) tests/acceptance/test_database_stops.py

fleet: .venv/.built  ## Put 64 callers on one line of four processes, and kill them one by one: make fleet SECONDS=60
	FLEET_CROWD_SECONDS=$(or $(SECONDS),60) FLEET_SECONDS=$(or $(SECONDS),60) $(ACCEPTANCE) \
	    tests/acceptance/test_fleet_line.py tests/acceptance/test_processes.py

races: .venv/.built  ## Give the same proof 64 times at once, again and again: make races REPEATS=100
	RACES=$(or $(REPEATS),100) $(ACCEPTANCE) tests/rpc -k "at_once"

spray: .venv/.built  ## Guess one code at many accounts: make spray ACCOUNTS=10000
	ACCOUNTS=$(or $(ACCOUNTS),10000) $(ACCEPTANCE) tests/unit/engine/test_spray.py

attacks: .venv/.built  ## List the attacks and the tests that show what each meets
	@.venv/bin/python -m tests.rpc.attacks

check: .venv/.built  ## Lint, types, import rules, contract
	@scripts/check

format: .venv/.built  ## Format the code and apply the linter's safe fixes
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

protos: .venv/.built  ## Generate protos/gen from protos/
	@scripts/gen-protos

schema: .venv/.built  ## Write down what the migrations make in PostgreSQL, which `ledger verify` compares with
	.venv/bin/python -m tests.contract.expected

lock:  ## Resolve requirements.in into requirements.lock (needs uv on PATH)
	env -u UV_FIND_LINKS -u UV_INDEX uv pip compile --no-config --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet requirements.in -o requirements.lock

clean:  ## Remove what can be built again, the environment too
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

bench: .venv/.built  ## What a decision costs beside a bare echo of the RPC framework: make bench STORE=postgresql
	.venv/bin/python -m scripts.bench --store $(or $(STORE),files)

demo: .venv/.built  ## Let a simulated city live on a real server for four weeks, and tell what came of it; also STORE=postgresql, or a DSN
	@.venv/bin/python scripts/demo.py $(if $(STORE),--store "$(STORE)")

loadtest: .venv/.built  ## Put a fixed schedule of calls on a running server: make loadtest ARGS="--ca … --api-key-file … --rate 300"
	@.venv/bin/python scripts/loadtest.py $(or $(ARGS),--help)

passkey: .venv/.built  ## Serve a page on which your browser enrols a passkey and approves a purchase with it
	@.venv/bin/python scripts/passkey.py $(ARGS)
