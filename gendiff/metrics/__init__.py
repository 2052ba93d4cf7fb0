"""Distances and scores that turn samples into numbers with their provenance."""
