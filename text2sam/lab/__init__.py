"""What text2sam costs and how well it does."""
