"""The HTTP side: middleware in one list, routes made from operations, problems, API documents."""
