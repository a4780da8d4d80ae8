"""Browsers: look through a data set's anchors, through what each stage makes of an image, or through what was found.

    AnchorBrowser(dataset, config)               labels of anchors (§4.1, §4.2), by two thresholds that relabel at once
    StageBrowser(model, dataset, stage)          one image through anchors, proposals, refined boxes and masks; NMS
    MaskBrowser(model, dataset, stage)           what was found beside what is there; {"val": ..., "test": ...} for both

Each is a widget, for the last expression of a cell; `stage` is the last one that the model has been trained in. Numbers
come from lib's own functions, and one forward pass an image gives what the sliders then choose from.
"""

from lib.notebook.anchor_browser import AnchorBrowser
from lib.notebook.mask_browser import MaskBrowser
from lib.notebook.stage_browser import StageBrowser

__all__ = ["AnchorBrowser", "MaskBrowser", "StageBrowser"]
