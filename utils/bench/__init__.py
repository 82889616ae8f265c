"""What training costs: the step and the data path, beside plain references."""
