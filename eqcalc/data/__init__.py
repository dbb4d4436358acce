"""DFT frames: reading, checking, statistics, graphs and batches."""
