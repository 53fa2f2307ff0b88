"""Measuring: text quality, and plain against speculative decoding on equal terms."""
