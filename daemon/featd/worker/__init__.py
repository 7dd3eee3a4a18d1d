"""One worker drives one device: claim -> decode -> forward -> shard -> settle.

The way of one image through this package: claims.py, pipeline.py, writer.py.
"""
