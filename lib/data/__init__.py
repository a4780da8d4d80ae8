"""The four course files: read, written, split, converted from COCO, or made up."""
