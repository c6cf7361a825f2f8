"""VBench's scores of our runs: videos in its folder layout, and its results back into the runs' folders."""
