"""The store on disk: immutable HDF5 files of vectors, how they appear, and how they are read."""
