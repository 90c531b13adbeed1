"""Helpers that know neither the networks nor the data sets: configuration, files, photos, metrics, devices."""
