"""Benchmarks of captions. Scoring is pure functions, apart from prompts, apart from asking."""
