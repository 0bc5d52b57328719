"""Training steps of other tools: scripts that run in those tools' own environments, and their pins.

Each file is started by path (``mechlab.bench.peers``), so nothing here may import mechlab.
"""
