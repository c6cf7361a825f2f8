"""User studies: method folders to a blind page (`make`), the votes that come back to numbers (`count`)."""
