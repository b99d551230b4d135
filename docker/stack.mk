.PHONY: test-stack
test-stack: venv ## Start the container stack and prove it (needs root, Maven, a quarter of an hour)
	@$(BIN)/python -m pytest -m stack --durations=15 tests/stack $(ARGS)
