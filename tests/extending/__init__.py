"""One addition of each kind of docs/extending.md, made in a copy of the sources and used there."""
