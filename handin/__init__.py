"""What §9 of the assignment asks to hand in, made from a finished run: it may use all of lib, which never uses it."""

COMMANDS = {
    "explorer": "write figures/explorer.html, a page to look around in the test images, without a kernel",
    "report": "write the run's numbers, figures and captions for report/, and compile it where LaTeX is installed",
    "slides": "the deck for the five-minute video, from the same figures",
    "submission": "pack the zip that is handed in",
    "index": "write figures/index.md: every exported figure and table, and the cell it comes from",
    "where": "write report/where.md: each demand of the sheet, and what meets it",
}
