"""What this machine does with this model: measured for `featd bench`."""
