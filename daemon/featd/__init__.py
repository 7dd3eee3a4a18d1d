"""featd: folders of images into CNN feature vectors, for as long as images keep arriving."""

__version__ = "0.1.0"
