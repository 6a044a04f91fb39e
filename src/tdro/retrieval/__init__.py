"""From texts to vectors and from vectors to ranked passages."""
