# Few words for the usual tasks: `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
# The development environment lies in the cache, outside the tree; asked for only where a recipe uses it.
VENV = $(shell $(PYTHON) locks path)
# Tests start hundreds of processes: what Python has compiled once is kept, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: cluster-up
cluster-up: ## bring up a real Kubernetes (CLUSTER=local|kind|current; see python3 cluster --help)
	$(PYTHON) cluster up

.PHONY: cluster-down
cluster-down: ## take it down and leave nothing behind
	$(PYTHON) cluster down

.PHONY: demo
demo: venv images ## from kubectl apply to the answers of all six families, on a real cluster; writes out/demo.html
	$(VENV)/bin/python demo

.PHONY: venv
venv: ## install the development environment outside the tree; quick when it is current
	@$(PYTHON) locks venv

.PHONY: locks
locks: ## write the locks again from pyproject.toml (LOCKS=--upgrade takes newer versions)
	$(PYTHON) locks compile $(LOCKS)

.PHONY: generate
generate: venv ## write what is made from the models again: CRD, chart, reference pages
	$(VENV)/bin/python crds/generate.py
	$(VENV)/bin/python charts/generate.py
	$(VENV)/bin/python docs/generate.py

.PHONY: images
images: cluster-up ## build the images, push them to the registry, have the nodes pull them
	$(PYTHON) images build
	$(PYTHON) images pull

.PHONY: lint
lint: venv ## format, lint, types, layers, and that generated files are current
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python crds/generate.py --check
	$(VENV)/bin/python charts/generate.py --check
	$(VENV)/bin/python docs/generate.py --check

.PHONY: test-unit
test-unit: venv ## the fast tests: no torch model, no Triton, no cluster (the chart needs Helm: make cluster-up once)
	$(VENV)/bin/pytest --numprocesses auto tests/unit tests/faults

# The images come first: they bring the cluster and with it Helm, which tests of the chart ask for.
.PHONY: test
test: lint images test-unit ## everything that CI runs: lint, fast tests, Hugging Face, Triton, Kubernetes
	@$(MAKE) --jobs 3 --output-sync=target test-models test-cluster

.PHONY: test-models
test-models: venv ## comparisons with Hugging Face, a real Triton, ten thousand damaged checkpoints
	$(VENV)/bin/pytest -m "(parity or triton or fuzz) and not train"

.PHONY: test-cluster
test-cluster: test-operator test-platform ## the whole product on a real Kubernetes

# Two commands, beside each other and the comparisons: most of their time is waiting for Kubernetes. What restarts the
# kubelet or asks a question all the time is in the second one, and what takes the node's GPUs waits for them.
OPERATOR = tests/cluster/test_operator*.py tests/cluster/test_resource.py
.PHONY: test-operator
test-operator: images venv ## the operator and its resource on a real Kubernetes
	$(VENV)/bin/pytest -m cluster $(OPERATOR)

.PHONY: test-platform
test-platform: images venv ## the cluster itself, the chart, the demo, rolling updates
	$(VENV)/bin/pytest -m cluster tests/cluster $(addprefix --ignore=,$(wildcard $(OPERATOR)))

.PHONY: retrain-check
retrain-check: venv ## train the tiny models again and see that they come out as good (minutes)
	$(VENV)/bin/pytest -m train

.PHONY: soak
soak: venv ## half an hour of mixed load on servers of all six families (MINUTES=30)
	$(VENV)/bin/pytest -m soak tests/soak --minutes $(or $(MINUTES),30)

.PHONY: bench
bench: venv images ## measure: apply to first answer, the operator beside a bare handler, the server beside its engine, a batch beside single requests, the server beside `transformers serve`, conversion beside cp
	$(VENV)/bin/python benchmarks/first_answer.py
	eval "$$($(PYTHON) cluster env)" && $(VENV)/bin/python benchmarks/reconcile.py
	$(VENV)/bin/python benchmarks/server.py
	$(VENV)/bin/python benchmarks/batching.py
	$(VENV)/bin/python benchmarks/transformers_serve.py
	$(VENV)/bin/python benchmarks/conversion.py
