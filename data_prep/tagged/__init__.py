"""Token-per-line files of tagged entities: their columns, their tagging schemes, the names of their types."""
