"""What every process of featd is made with: forks, pipes, signals, deaths explained, devices, the hands file."""
