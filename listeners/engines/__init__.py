"""Engines: the things that load code, and how each one is heard."""
