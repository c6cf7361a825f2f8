"""Metrics as other papers' packages compute them: video distances on features of large networks, and VBench's names."""
