"""Mask R-CNN from its parts: one concept a module, imports only to a lower floor (see README)."""
