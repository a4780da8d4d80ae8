"""Where things lie, what it runs on, and files that appear whole: nothing here knows of boxes or networks."""
