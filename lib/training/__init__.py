"""The stages, the loop that trains them, what they leave on disk, and the pretraining of the demo's backbone."""
