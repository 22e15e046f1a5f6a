"""Small synthetic domains with a tiny model in a real format and a reward that is known exactly.

A world is built in about a minute on two cores, is cached on disk, and is the same for the same seed. Everything that
runs on a world runs unchanged on a real model: a world holds ordinary folders and ordinary JSONL files, nothing else.
"""
