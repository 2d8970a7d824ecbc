"""For plugin authors and for the project's own tests: recordings, strategies, models."""
