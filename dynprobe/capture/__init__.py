"""A live model to snapshots, leaving no trace in the training run."""
