.PHONY: test-stack
test-stack: venv ## Start the container stack and prove it (needs root, Maven, ten minutes)
	@$(BIN)/python -m pytest -m stack tests/stack $(ARGS)
