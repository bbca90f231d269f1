"""What the project needs of the machine it runs on and of libraries at start: errors, disks, threads, light imports."""
