"""Sources: every raw form that users have, read as chunks of raw records."""
