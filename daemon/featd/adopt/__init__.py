"""Taking over the vectors that a script made: its files are matched with the files of a root, a sample is computed
again and compared, and then the vectors are recorded as a worker records its own."""
