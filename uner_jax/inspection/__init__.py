"""What a path is: the facts of a model, a run, a data set or a file of records, from its headers."""
