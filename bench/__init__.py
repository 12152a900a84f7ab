"""This endpoint and vLLM's on one machine in one run: `python -m bench`. See docs/benchmarks/README.md."""
