"""From a data layer and a position in its sample stream to the batches that a net takes (feed.open_feed)."""
