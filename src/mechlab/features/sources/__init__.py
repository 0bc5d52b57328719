"""Everything that can be a feature, streamed into an index."""

from mechlab.features.sources.dense import index_heads, index_site, index_vectors
from mechlab.features.sources.dictionary import index_dictionary
from mechlab.features.sources.functions import index_function
from mechlab.features.sources.pairs import pair_rows
from mechlab.features.sources.rows import RowSource, TextRows, model_rows, store_rows

__all__ = [
    "RowSource",
    "TextRows",
    "index_dictionary",
    "index_function",
    "index_heads",
    "index_site",
    "index_vectors",
    "model_rows",
    "pair_rows",
    "store_rows",
]
