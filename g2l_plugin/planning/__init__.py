"""What a run needs before a machine is rented: memory, hours, disk and money."""
