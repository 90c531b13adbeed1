"""Helpers that know nothing of the data sets; photos, training and evaluation have a folder each."""
