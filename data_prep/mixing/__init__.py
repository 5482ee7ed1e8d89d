"""Parts of `data_prep.mixture`: which conversations are taken, and where sets disagree."""
