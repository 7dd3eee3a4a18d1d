"""The parts of script/gpu-check, and what they share."""
