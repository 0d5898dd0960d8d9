"""edgellm beside other engines: speed, memory and closeness to the source, measured alike on one machine.

    python -m edgellm.benchmarks.peers --models smollm2 qwen2.5 --threads 1 2 --trials 5 --json peers.json

A peer is one file of this folder that holds PACKAGES, VARIANTS, `prepare` and `open_engine` (see `engine`); it is found by
its file name and imported when it is asked for. A peer whose package is missing is left out, and the table says so.
"""
