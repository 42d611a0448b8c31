"""Ray Data steps that the jobs are made of."""
