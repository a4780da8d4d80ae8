"""What the notebooks draw with, browse with and export; and what runs them."""
