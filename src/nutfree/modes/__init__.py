"""The separate modes of a density: the search for them, and the record of them."""
