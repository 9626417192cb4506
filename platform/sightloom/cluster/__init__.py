"""Where work runs: typed jobs, deterministic packages, manifests, and a client of Ray's Jobs API."""
