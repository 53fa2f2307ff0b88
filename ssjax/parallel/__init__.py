"""Devices as a mesh, and processes that work together."""
