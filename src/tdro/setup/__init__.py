"""What comes before a study: a machine that is ready, a study file, settings from elsewhere."""
