"""Where sentences come from: documents, their tokens on disk, and blocks of tokens.

Torch-free; `transformers` and `datasets` are imported only when they are needed.
"""

from dictlearn.text.documents import Document, TextSource
from dictlearn.text.hub import HubText
from dictlearn.text.installed import InstalledDocs
from dictlearn.text.local import LocalText
from dictlearn.text.packing import Blocks, pack
from dictlearn.text.store import TokenStore, open_store
from dictlearn.text.tokens import tokenize

__all__ = [
    "Blocks",
    "Document",
    "HubText",
    "InstalledDocs",
    "LocalText",
    "TextSource",
    "TokenStore",
    "open_store",
    "pack",
    "tokenize",
]
