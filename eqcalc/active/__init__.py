"""The loop of active learning: which frames are worth a label, and how they get one."""
