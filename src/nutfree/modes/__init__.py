"""The separate modes of a density: the search for them, and what is known of them."""
