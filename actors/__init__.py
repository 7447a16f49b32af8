"""Ray: one thin actor around each library object, and the pool that keeps them busy."""
