# Few words for the usual tasks: `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: cluster-up
cluster-up: ## bring up a real Kubernetes (CLUSTER=local|kind|current; see python3 cluster --help)
	$(PYTHON) cluster up

.PHONY: cluster-down
cluster-down: ## take it down and leave nothing behind
	$(PYTHON) cluster down
