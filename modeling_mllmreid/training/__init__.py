"""Training: arguments, batches, ReIDTrainer, checkpoints, and one whole run."""
