"""From documents and entity types to grounded entities with offsets and scores."""
