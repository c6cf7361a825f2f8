"""Folders of videos that are given: their files, their method.json, and the comparison of one's own folders."""
