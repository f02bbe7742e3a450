"""What a training run would use of its data, before a machine is paid for it."""
