"""The judge on the run's own devices: a policy that answers yes or no, statement by statement."""
