"""Speed and memory beside other tools: `make bench`, or `python -m benchmarks --help`."""
