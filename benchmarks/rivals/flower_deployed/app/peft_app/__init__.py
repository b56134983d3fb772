"""FedAvg of a PEFT model."""
