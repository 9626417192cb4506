"""The curation path: raw image-text data in, shards that can be trusted out (see `curation.curate`)."""
