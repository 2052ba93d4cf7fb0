"""Exact answers: distributions whose perfect network and whose true samples are known in closed form."""
