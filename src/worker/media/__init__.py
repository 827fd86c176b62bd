"""Pictures in and out: fetched, decoded, encoded, delivered."""
