"""Reading the live vectors: `featd.open`. Export stands on it."""
