"""Tokenizers of every published form."""
