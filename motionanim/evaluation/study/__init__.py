"""User studies: `make` turns folders of videos into a blind page, `count` turns the votes into numbers."""
