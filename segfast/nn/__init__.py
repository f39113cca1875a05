"""Modules that wrap the operators."""
