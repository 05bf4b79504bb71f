"""Names of the weights in published ReID checkpoints, and how they become a vision form: a file for each project."""
