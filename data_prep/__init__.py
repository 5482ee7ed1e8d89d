"""Data preparation: every step is a command, `python -m data_prep.STEP`."""
