"""Controllable longer image animation with diffusion models (arXiv 2405.17306)."""
