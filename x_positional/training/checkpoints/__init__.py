"""The folder of a run: checkpoints written atomically, restored bit-equal, and pruned."""
