"""TFRecord data sets of tokenized conversations: building, reading, packing, batches."""
