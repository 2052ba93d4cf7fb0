"""Building blocks without a config of their own, shared by two networks or more."""
