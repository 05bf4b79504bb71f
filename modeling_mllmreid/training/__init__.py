"""Training: arguments, batches, ReIDTrainer, checkpoints, and the training run."""
