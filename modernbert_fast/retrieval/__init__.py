"""Exact search over stored vectors, one or many a document."""

from modernbert_fast.retrieval.index import Hit, Index
from modernbert_fast.retrieval.writer import IndexWriter

__all__ = ["Hit", "Index", "IndexWriter"]
