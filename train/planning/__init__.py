"""What a run will need: memory by part and time by phase, in stated arithmetic."""
