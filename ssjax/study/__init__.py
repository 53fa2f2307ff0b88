"""The comparison of the paper's three tasks."""
