"""A tokenizer and a text encoder for the prompts of a grammar: one token for each word that carries meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, START, UNKNOWN = "<pad>", "<start>", "<unk>"


def build_tokenizer(grammar: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Tokens of a prompt: a start, then the value of every slot in the order of the sentence; the rest is dropped.

    "a tall red pole, low sun on the left, a plant near right" -> <start> tall red low left near-right. The empty prompt
    is a start and padding: the condition of guidance.

    Args:
        grammar: JSON data as `gendiff.causal.scene_grammar.TemplateGrammar` reads it.
    """
    slots = grammar["slots"]
    words = list(dict.fromkeys(word for slot in slots.values() for word in slot["values"]))
    vocabulary = {token: i for i, token in enumerate([PAD, START, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    # Longer values first: "near right" is one place, not a distance and a side.
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"\b(?:{pattern})\b"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, vocabulary[START])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        unk_token=UNKNOWN,
        model_max_length=1 + len(slots),
        padding_side="right",
    )
