# `make` alone prints what there is.
PROFILE ?= small
PYTHON := .venv/bin/python
# What the tests without processes have to cover, every branch.
PURE := order/domain.py,order/checkout.py,stock/domain.py,payment/domain.py,common/fold.py,common/request_reply.py,common/decision.py,common/messages.py,common/batch_init.py
# How an image is built: `$(BUILD) NAME:TAG CONTEXT`.
BUILD ?= docker build -t
SCRIPTS := .ci/run *.sh */*.sh local/kafka/*.sh helm/redis-cluster/files/*.sh
LOCK := .venv/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate

.DEFAULT_GOAL := help
.PHONY: help bootstrap up down status audit test test-computed test-integration test-e2e check unit simulate planted drills overload soak bench images manifests lock

help: ## Print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

bootstrap: ## Install what is missing: system packages, and the locked Python packages in .venv
	@local/bootstrap.sh

up: bootstrap ## Start the system and wait for its first checkout (PROFILE=small, ha or test)
	@$(PYTHON) -m local up $(PROFILE)

down: bootstrap ## Stop what is up, or PROFILE=...; WIPE=1 deletes its data too
	@$(PYTHON) -m local down $(if $(filter command line environment,$(origin PROFILE)),$(PROFILE)) $(if $(WIPE),--wipe)

status: bootstrap ## Show every process and every partition (JSON=1: as JSON)
	@$(PYTHON) -m local status $(if $(filter command line environment,$(origin PROFILE)),$(PROFILE)) $(if $(JSON),--json)

audit: bootstrap ## Join orders, charges and deductions one by one, print every offender (JSON=1: as JSON)
	@$(PYTHON) -m audit $(PROFILE) $(if $(JSON),--json)

test: check ## Prove it all: check, unit, simulation, integration, drills, end-to-end; on ports of its own
	@$(MAKE) --no-print-directory --output-sync=line -j 3 test-computed test-integration test-e2e

# What computes, and beside it, on a profile each, what waits.
test-computed: export COVERAGE_FILE = .coverage.computed
test-computed:
	@$(PYTHON) -m pytest test/unit --durations=5 --cov --cov-report=
	@$(PYTHON) -m coverage report --include=$(PURE) --fail-under=100
	@$(PYTHON) -m pytest test/simulation

test-integration:
	@$(PYTHON) -m pytest test/integration --durations=10 --cov --cov-report=term

test-e2e: export TEST_PROFILE = test-e2e
test-e2e:
	@$(PYTHON) -m pytest test/drills test/e2e --durations=10

check: bootstrap ## Format, lint, types, imports; scripts, images and manifests (CRDS=folder of Strimzi's definitions)
	@.venv/bin/ruff format --check
	@.venv/bin/ruff check
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/shellcheck -x -P SCRIPTDIR $(wildcard $(SCRIPTS))
	@.venv/bin/hadolint $(wildcard */Dockerfile)
	@local/kube_tools.sh
	@$(PYTHON) -m local.validate $(if $(CRDS),--crds $(CRDS))

unit: bootstrap ## Run the tests that need no process
	@$(PYTHON) -m pytest test/unit

simulate: bootstrap ## Simulate the whole system from SEEDS=2000 seeds, or from one, SEED=7, with its trace
	@PYTHONPATH=test $(PYTHON) -m simulation run $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),2000))

planted: bootstrap ## Plant every known kind of bug and count the seeds until the simulation finds it
	@PYTHONPATH=test $(PYTHON) -m simulation planted --write docs/architecture.md

drills: bootstrap ## Lose processes, Redis nodes and brokers under load (FAULT=redis RUNS=20 TOGETHER=10 SEED=1; TARGET=k8s)
	@PYTHONPATH=test $(PYTHON) -m drills run $(if $(TARGET),--profile $(TARGET)) $(if $(FAULT),--fault $(FAULT)) \
		$(if $(RUNS),--runs $(RUNS)) $(if $(TOGETHER),--together $(TOGETHER)) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(SEED),--seed $(SEED))

overload: bootstrap ## Ask for five times what the system can do (SECONDS=60 SEED=1)
	@PYTHONPATH=test $(PYTHON) -m drills overload $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

soak: bootstrap ## Load for MINUTES=30 with a random fault every 20-40 s; memory and descriptors over time (SEED=1)
	@PYTHONPATH=test $(PYTHON) -m drills soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

bench: bootstrap ## Measure checkouts against a POST that does nothing and a naive version
	@$(PYTHON) stress-test/bench.py

images: ## Build the images of the three services, and of the audit (BUILD=command instead of `docker build -t`)
	@$(BUILD) checkout-common:latest ./common
	@$(BUILD) order:latest ./order
	@$(BUILD) stock:latest ./stock
	@$(BUILD) user:latest ./payment
	@$(BUILD) checkout-audit:latest . -f audit/Dockerfile

manifests: bootstrap ## Renew k8s/gateway-config.yaml from the gateway's own files
	@$(PYTHON) -m local.manifests

lock: bootstrap ## Renew the lock files from pyproject.toml
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check uv
	@$(LOCK) -o common/requirements.txt
	@$(LOCK) --group dev -c common/requirements.txt -o requirements-dev.txt
	@$(LOCK) --group audit -c requirements-dev.txt -o audit/requirements.txt
