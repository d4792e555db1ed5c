"""What a run shows: progress, metrics and pictures."""
