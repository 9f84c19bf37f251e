"""Runs a whole network in native code."""
