"""Questions about labelled passages: type names, negatives, counts of a data set, and the report on it."""
