"""What draws tell of themselves: discrepancies, modes, evidence, ArviZ trees."""
