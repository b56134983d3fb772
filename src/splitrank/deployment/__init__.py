"""What ``splitrank deploy init`` writes: everything that a deployment on real machines needs."""
