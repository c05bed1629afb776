"""Benchmarks: image-text data, one data set a client."""
