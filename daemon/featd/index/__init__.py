"""The index of a blob's live vectors, which `featd search` and `featd duplicates` ask: a cache in the store, made from
the shards and kept up to date from the feed. It can be deleted at any time."""
