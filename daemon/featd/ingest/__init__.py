"""Files become pending rows. The scan is the truth; it never opens a file."""
