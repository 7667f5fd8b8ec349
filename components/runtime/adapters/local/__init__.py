"""The backends of one machine: a folder as store, child processes as jobs, a file as an endpoint's wanted state."""
