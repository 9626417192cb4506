"""What infra/ holds beside hand-written files: rendered from jobs/ and the metric table, and checked offline."""
