.PHONY: test-kubernetes
test-kubernetes: venv ## Start a node of Kubernetes and prove the manifests on it (needs root, Go, Docker, twenty minutes)
	@$(BIN)/python -m pytest -m kubernetes tests/kubernetes $(ARGS)
