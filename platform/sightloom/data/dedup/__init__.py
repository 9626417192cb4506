"""Duplicates: exact and perceptual; the losers are named, nothing is changed."""
