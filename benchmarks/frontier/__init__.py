"""Quality against speed: how fast edgellm decodes beside llama.cpp's best file that is as close to the source.

    python -m edgellm.benchmarks.frontier --trials 3 --json frontier.json --markdown frontier.md --plot frontier.svg

It measures as `edgellm.benchmarks.peers` does, and draws another table out of the same run: any run of that command
can be drawn too. The models' channels are permuted, so that every file starts from values that lie on nobody's grid.
"""
