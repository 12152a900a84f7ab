"""Everything that serves: the VM's agent, the API server, the engine, and the pure parts that the laptop shares."""
