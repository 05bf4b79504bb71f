"""Retrieval: distances, ranking, re-ranking, the matching rule, stored embeddings and ranked sheets."""
