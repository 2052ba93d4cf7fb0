"""Causal graphs, mechanisms and interventions: what speaks of causes, not of pixels."""
