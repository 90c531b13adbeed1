"""What a training run keeps, plans, tells and draws."""
