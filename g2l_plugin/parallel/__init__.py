"""Running a function on many jobs, in processes of this machine or on a cluster."""
