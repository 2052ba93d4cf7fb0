"""Bidirectional transformers over image tokens of which some are hidden, and tokenizers for them."""
