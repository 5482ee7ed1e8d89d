"""Reports: pages of tables and plots that ask nothing of the network, and look alike."""
