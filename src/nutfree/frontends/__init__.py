"""Where a posterior comes from: a NumPyro model, or one owner's model of many."""
