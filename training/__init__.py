"""Encoders: captions, towers, the objective and the training loop; loading any encoder."""
