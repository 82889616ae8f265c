"""Tables and figures: the papers' figures beside those of finished runs."""
