"""Retrieval: distances by blocks, nearest images, re-ranking, stored embeddings, ranked sheets."""

from .distances import distance_blocks
from .expansion import expand_queries
from .index import Embeddings, load_embeddings, save_embeddings
from .ranking import Ranking, rank_blocks, rank_gallery
from .reranking import rerank_blocks
from .same_person import SamePerson
from .sheet import ranked_sheet

__all__ = [
    "Embeddings",
    "Ranking",
    "SamePerson",
    "distance_blocks",
    "expand_queries",
    "load_embeddings",
    "rank_blocks",
    "rank_gallery",
    "ranked_sheet",
    "rerank_blocks",
    "save_embeddings",
]
