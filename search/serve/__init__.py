"""`sparsight serve`: a local page, and the REST interface below it, over one index."""
