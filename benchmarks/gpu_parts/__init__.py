"""The parts of benchmarks/gpu.py; each is a process of its own, so that a crash or a kill ends one part only."""
