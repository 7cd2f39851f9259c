"""Teachers and students as models: families, the cut to q, k, v, weights, vocabularies."""
