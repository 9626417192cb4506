"""From a registered version to the champion: who, when, why and on what evidence, in a ledger that no race breaks."""
