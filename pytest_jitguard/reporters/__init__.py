"""One model, many renderers: what is shown and written about a run, always built from journal records."""
