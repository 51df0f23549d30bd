"""An index as plain files, back again, and SQL on it that can touch nothing else."""
