"""COCO's average precision and recall, the course's own mAP."""
