"""Renderers: a photo and its motion become frames."""
