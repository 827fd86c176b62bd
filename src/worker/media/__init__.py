"""Pictures in and out: fetched, decoded, encoded and delivered."""
