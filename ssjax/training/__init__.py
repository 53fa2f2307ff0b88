"""Training with stream losses. Reading order: `losses`, `optimizer`, `step`, `checkpoint`."""
