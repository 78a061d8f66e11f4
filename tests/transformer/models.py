"""Small random models with tokenizers trained on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import AutoModel, PreTrainedConfig, PreTrainedTokenizerFast

TEXT = [
    "A frozen transformer reads the sentence and says one vector for every word of it.",
    "The river bank was flooded, so the bank in the town closed early.",
    "Dictionaries of factors are learned from hidden states of all the layers together.",
]
BERT_SPECIALS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
BERT_SPECIALS |= {"sep_token": "[SEP]", "mask_token": "[MASK]"}


def save_model(config: PreTrainedConfig, folder: Path) -> None:
    """Save a random base model of this configuration to `folder`."""
    torch.manual_seed(0)
    make: Any = AutoModel.from_config
    make(config).save_pretrained(folder)


def save_bert_tokenizer(folder: Path) -> int:
    """Save a WordPiece tokenizer with [CLS] and [SEP]; return the size of its vocabulary."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    names = list(BERT_SPECIALS.values())
    tokenizer.train_from_iterator(TEXT, WordPieceTrainer(vocab_size=150, special_tokens=names))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return _save(tokenizer, folder, **BERT_SPECIALS)


def save_gpt2_tokenizer(folder: Path) -> int:
    """Save a byte-level BPE tokenizer without padding token; return its vocabulary's size."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return _save(tokenizer, folder, eos_token="<|endoftext|>")


def _save(tokenizer: Tokenizer, folder: Path, **special: Any) -> int:
    wrap: Any = PreTrainedTokenizerFast
    fast = wrap(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)
    return len(fast)
