"""Other libraries that learn of spinevision's models when a module of this package is imported."""
