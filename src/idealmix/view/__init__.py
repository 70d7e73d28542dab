"""``idealmix view``: a run's page in the browser, on this machine only, following the run while it goes."""
